"""The rows that the recorder of guests writes."""

from benchmarks.loaded_guest import Outside
from benchmarks.record_guest import COLUMNS, SCENARIOS, Recorder
from tests.harness.recordings import RECORDINGS

MIB = 1 << 20
STATS = {"free-memory": 300 * MIB, "swap-in": 8192, "major-faults": 7}
INSIDE = {
    "psi_some": 2500,
    "psi_full": 0,
    "workingset_refault_file": 40,
    "workingset_refault_anon": 0,
    "work": 100,
    "op_us": 4999,
    "probe_us": 12_000,
}


def test_sums_begin_at_the_first_row_and_what_the_device_tells_in_bytes_becomes_pages() -> None:
    recorder = Recorder()
    recorder.row(-1.0, 0, Outside(0, 0, STATS, 5000), INSIDE)
    later = STATS | {"swap-in": 8192 + 3 * 4096, "major-faults": 9}
    inside = INSIDE | {"psi_some": 4500, "work": 130}
    row = recorder.row(0.04, 32, Outside(30, 1, later, 5064), inside)
    assert (row["t"], row["target_mib"], row["balloon_mib"], row["age_s"]) == ("0.0", 32, 30, 1)
    assert (row["free_mib"], row["swap_in"], row["major_faults"]) == (300, 3, 2)
    assert (row["disk_read_kib"], row["in_psi_some_ms"], row["in_work"]) == (64, 2, 30)
    assert (row["in_op_ms"], row["in_probe_ms"]) == (4, 12)


def test_what_is_not_known_is_an_empty_field() -> None:
    row = Recorder().row(0.0, 0, Outside(0, 0, STATS, 0), None)
    assert list(row) == COLUMNS
    assert [row["oom_kills"], row["in_work"], row["in_op_ms"], row["need"]] == ["", "", "", ""]


def test_every_scenario_has_its_recording_with_the_same_columns() -> None:
    for name in SCENARIOS:
        header = (RECORDINGS / f"own-{name}.csv").read_text().splitlines()[0]
        assert header == ",".join(COLUMNS)
