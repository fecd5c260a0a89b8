"""Recordings of real guests, the kinds that are fitted to them, and how far these are off."""

import math
from pathlib import Path

import pytest

from balloon_daemon.ctl.main import main
from balloon_daemon.ctl.simulate.fit import fit
from balloon_daemon.ctl.simulate.loads import KINDS
from balloon_daemon.ctl.simulate.off import crossed, lines, off
from balloon_daemon.ctl.simulate.recording_file import read_recording, read_recordings
from balloon_daemon.ctl.simulate.write_loads import HELD_OUT, kinds_of
from balloon_daemon.errors import ConfigError
from tests.harness.recordings import RECORDINGS

HEAD = "t,target_mib,balloon_mib,free_mib,available_mib,total_mib,caches_mib"
Output = pytest.CaptureFixture[str]


def rows(number: int, line: str = "0,0,900,850,972,3") -> str:
    return "".join(f"\n{t},{line}" for t in range(-5, number - 5))


def written(path: Path, text: str) -> Path:
    file = path / "guest.csv"
    file.write_text(text)
    return file


# --- reading ------------------------------------------------------------------------------------


def test_recording_with_seen_columns_alone_is_enough(tmp_path: Path) -> None:
    recording = read_recording(written(tmp_path, HEAD + rows(20)))
    assert recording.name == "guest"
    assert recording.times[0] == -5
    assert not recording.has("in_work")
    kind = fit(recording)
    assert (kind.size_mib, kind.load.cache_mib, kind.load.anon_mib) == (1024, 3, 69)
    assert off(recording, kind).balloon == (0, 0)


def test_growth_is_spread_over_lines_that_came_late(tmp_path: Path) -> None:
    late = ["0", "", "", "30", "30"] * 2
    lines = [f"{t},0,0,900,850,972,3,{pages}" for t, pages in enumerate(late)]
    text = "\n".join([f"{HEAD},in_refault_file", *lines])
    recording = read_recording(written(tmp_path, text))
    assert recording.rates("in_refault_file")[:5] == [0, 10, 10, 10, 0]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is no recording of a guest: it has no t, target_mib"),
        ("a,b\n1,2", "is no recording of a guest: it has no t, target_mib"),
        (HEAD + rows(9), "it needs 10 lines, in order"),
        (HEAD + rows(10) + rows(10), "it needs 10 lines, in order"),
        (HEAD + rows(10, "0,0,x,850,972,3"), "guest.csv:2: free_mib is 'x', no number"),
        (HEAD + rows(10, "0,0,inf,850,972,3"), "guest.csv:2: free_mib is 'inf', no number"),
        (HEAD + rows(10, "0,0,,850,972,3"), "guest.csv:2: free_mib is empty"),
        (HEAD + rows(10, "0,0"), "guest.csv:2: free_mib is empty"),
    ],
)
def test_file_that_is_no_recording_is_told_with_its_line(
    text: str, told: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        read_recording(written(tmp_path, text))
    assert told in str(caught.value)


def test_directory_without_recordings_is_told(tmp_path: Path, capsys: Output) -> None:
    assert main(["judge", "--recordings", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (f"balloonctl judge: {tmp_path}: has no recording (*.csv)\n")


# --- fitting ------------------------------------------------------------------------------------


def test_kinds_are_those_of_the_recordings() -> None:
    remedy = "run python -m balloon_daemon.ctl.simulate.write_loads tests/data/recordings"
    assert kinds_of(read_recordings(RECORDINGS)) == KINDS, remedy


@pytest.mark.parametrize(
    ("name", "set_mib", "stream", "grow_mib", "swap"),
    [
        ("k61-idle", 0, 0, 0, False),
        ("k61-mmapr", 600, 0, 0, False),
        ("k72-read", 600, 0, 0, False),
        ("k61-stream", 0, 15, 0, False),
        ("k61-coldstart", 0, 10, 0, False),
        ("k61-burst", 0, 0, 500, False),
        ("k72-burst", 0, 0, 500, False),
        ("k72-zram", 0, 0, 0, True),
    ],
)
def test_kind_is_what_its_readme_says(
    name: str, set_mib: float, stream: float, grow_mib: float, swap: bool
) -> None:
    load = KINDS[name].load
    assert load.set_mib == pytest.approx(set_mib, rel=0.1)
    assert load.stream_rate == pytest.approx(stream, rel=0.25)
    assert load.grow_mib == pytest.approx(grow_mib, rel=0.1)
    assert bool(load.swap_touches) is swap


@pytest.mark.parametrize("name", KINDS)
def test_model_is_not_far_from_what_was_recorded(name: str) -> None:
    error = off(read_recording(RECORDINGS / f"{name}.csv"), KINDS[name])
    assert error.balloon.median <= 20
    assert error.available.median <= 26
    assert error.read.median <= 17


@pytest.mark.parametrize(
    "path", sorted(RECORDINGS.glob(f"{HELD_OUT}*.csv")), ids=lambda path: path.stem
)
def test_model_is_not_far_from_guests_that_it_was_not_made_for(path: Path) -> None:
    recording = read_recording(path)
    error = off(recording, fit(recording))
    assert error.balloon.median <= 1
    assert error.available.median <= 10
    assert error.read.median <= 20


def needs() -> list[str]:
    return ["k61-mmapr", "k72-mmapr", "k72-read", "k61-burst", "k72-burst", "k61-zram", "k72-zram"]


@pytest.mark.parametrize("name", needs())
def test_need_begins_in_the_model_when_it_began_and_is_seen_when_it_was_seen(name: str) -> None:
    error = off(read_recording(RECORDINGS / f"{name}.csv"), KINDS[name])
    for recorded, modelled in (error.need_at_s, error.seen_at_s):
        assert recorded is not None
        assert modelled is not None
        assert abs(recorded - modelled) <= 5


@pytest.mark.parametrize("name", [name for name in KINDS if name.endswith(("idle", "stream"))])
def test_guest_that_needs_nothing_is_in_no_need_in_the_model(name: str) -> None:
    error = off(read_recording(RECORDINGS / f"{name}.csv"), KINDS[name])
    assert error.need_at_s[1] is None
    assert error.seen_at_s[1] is None


def test_kind_of_one_kernel_is_not_far_from_the_other_kernel() -> None:
    errors = crossed(read_recordings(RECORDINGS), KINDS)
    assert len(errors) == 20
    assert sum(each.available.median for each in errors) / len(errors) <= 20
    table = lines(errors)
    assert len(table) == 22
    assert max(map(len, table)) <= 100


def test_kind_of_another_size_is_the_same_guest_only_larger() -> None:
    small, large = KINDS["k61-mmapr"], KINDS["k61-mmapr"].of_size(4096)
    assert large.load.set_mib == 4 * small.load.set_mib
    assert large.kernel.keep_mib == 4 * small.kernel.keep_mib
    assert large.kernel.free_rate == small.kernel.free_rate
    assert large.load.faults_per_mib == small.load.faults_per_mib
    assert math.isinf(large.load.grow_s)
