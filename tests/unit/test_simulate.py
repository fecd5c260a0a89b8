"""``balloonctl simulate``: the model's guests and host, the sums, and what the command prints."""

import json
from pathlib import Path

import pytest

from balloon_daemon.ctl.main import main
from balloon_daemon.ctl.simulate.guest import RATE_BYTES_S, Guest
from balloon_daemon.ctl.simulate.overrides import changes_of
from balloon_daemon.ctl.simulate.samples import GONE_S, Samples
from balloon_daemon.ctl.simulate.tally import Sums, Tally
from balloon_daemon.ctl.simulate.world import DAY_S, Changes, World
from balloon_daemon.ctl.times import parse_duration
from balloon_daemon.errors import ConfigError
from balloon_daemon.records.trace import (
    Entry,
    Header,
    Read,
    Recorded,
    Trace,
    encode_entry,
    encode_header,
)
from balloon_daemon.records.trace_values import MOST_BEGAN_S, MOST_CLOCK_S
from balloon_daemon.sizing.balloon_policy import PolicySettings
from balloon_daemon.sizing.decision import Reading
from balloon_daemon.sizing.host_events import Added, Looked, Moved, Removed, Sampled
from balloon_daemon.sizing.need import Figures
from balloon_daemon.sizing.terms import Terms
from balloon_daemon.sizing.vm_settings import SEED, Profile, VmSettings
from balloon_daemon.units import GIB, MIB, VmId

TRACES = Path(__file__).parents[2] / "docs" / "traces"

WEB, DB = VmId(1, "web"), VmId(2, "db")
SETTINGS = PolicySettings(
    recheck_jitter_s=0.0, release_after_jitter_s=0.0, release_every_jitter_s=0.0
)
Output = pytest.CaptureFixture[str]


def figures(at_s: float, available_mib: int | None = 3000, **more: int) -> Figures:
    available = None if available_mib is None else available_mib * MIB
    return Figures(at_s, available, available, **more)


def trace(*events: tuple[float, Recorded]) -> Trace:
    return Trace("a.trace", Header(0.0, SETTINGS), [Entry(at_s, event) for at_s, event in events])


def lasting(
    available_mib: int, seconds: int, settings: VmSettings = SEED
) -> list[tuple[float, Recorded]]:
    """A VM of 2 GiB (a balloon of at most 1 GiB) on a host that has so much for so long."""
    seen = Reading(available_mib, 400)
    events: list[tuple[float, Recorded]] = [(0.0, Added(WEB, 2 * GIB, terms=Terms(settings)))]
    for at_s in range(seconds):
        if at_s % 30 == 0:
            events.append((at_s, Sampled(WEB, figures(at_s))))
        events.append((at_s, Read(seen)))
    return events


def _at_s(event: tuple[float, Recorded]) -> float:
    return event[0]


def simulated(of: Trace, *assignments: str, profile: Profile | None = None) -> Sums:
    changes = changes_of(of.header.settings, assignments, profile)
    return World(of, changes, lambda: 0.0).run()


# --- the model's guests -------------------------------------------------------------------------


def guest(*sampled: Figures) -> Guest:
    samples = Samples()
    for each in sampled:
        samples.add(each)
    return Guest(careful=True, vm_mem_bytes=2 * GIB, balloon_bytes=0, at_s=0.0, samples=samples)


def test_balloon_follows_its_target_at_its_rate_and_stops_there() -> None:
    web = guest()
    web.set_target(2 * RATE_BYTES_S, 10.0)
    sizes = [web.balloon_bytes(at_s) for at_s in (10.0, 11.0, 11.5, 12.0, 20.0)]
    assert sizes == [0, RATE_BYTES_S, RATE_BYTES_S * 3 // 2, 2 * RATE_BYTES_S, 2 * RATE_BYTES_S]
    web.set_target(0, 20.0)
    assert [web.balloon_bytes(at_s) for at_s in (21.0, 22.0)] == [RATE_BYTES_S, 0]


def test_balloon_that_moves_is_reported_each_second_and_once_it_is_there() -> None:
    web, times = guest(), []
    web.set_target(RATE_BYTES_S * 3 // 2, 0.0)
    while web.report_at_s < 100:
        times.append((round(web.report_at_s, 1), web.report(web.report_at_s)))
    assert times == [(1.0, RATE_BYTES_S), (1.5, RATE_BYTES_S * 3 // 2)]


def test_guest_gives_no_more_than_it_has_available() -> None:
    web = guest(figures(0.0, 100))
    web.set_target(GIB, 0.0)
    assert web.balloon_bytes(60.0) == 100 * MIB


def test_guest_has_less_by_what_its_balloon_holds_more() -> None:
    web = guest(figures(0.0, 1000))
    web.set_target(300 * MIB, 0.0)
    web.recorded_bytes = 100 * MIB
    at_last = web.figures(60.0)
    assert at_last is not None
    assert (at_last.available_bytes, at_last.free_bytes) == (800 * MIB, 800 * MIB)


def test_counters_grow_evenly_between_two_statistics_and_the_rest_does_not() -> None:
    samples = Samples()
    samples.add(figures(0.0, 500, disk_read_bytes=0, major_faults=10, swap_in_bytes=7))
    samples.add(figures(30.0, 100, disk_read_bytes=300, major_faults=40, swap_in_bytes=0))
    assert samples.at(10.0) == figures(
        10.0, 500, disk_read_bytes=100, major_faults=20, swap_in_bytes=7
    )


def test_guest_whose_statistics_end_has_none_after_a_time_and_before_the_first() -> None:
    samples = Samples()
    samples.add(figures(100.0))
    assert samples.at(99.0) is None
    assert samples.at(100.0 + GONE_S) == figures(100.0 + GONE_S)
    assert samples.at(100.5 + GONE_S) is None


# --- the sums -----------------------------------------------------------------------------------


def test_sums_are_of_what_was_said_before_the_time_passed() -> None:
    tally = Tally()
    tally.advance(100.0)
    tally.saw(Reading(300, 400))
    tally.moved(WEB, GIB)
    tally.advance(110.0)
    tally.moved(DB, 2 * GIB)
    tally.saw(Reading(500, 400))
    tally.advance(111.0)
    tally.moved(WEB, 0)
    tally.saw(None)
    tally.advance(115.0)
    assert tally.sums == Sums(
        seconds=15.0,
        low_s=10.0,
        unknown_s=4.0,
        most_missing_mib=100,
        byte_seconds=(10 + 3 + 8) * GIB,
        peak_bytes=3 * GIB,
    )


def test_balloon_that_a_vm_has_already_is_no_step() -> None:
    added: tuple[float, Recorded] = (0.0, Added(WEB, 2 * GIB, 256 * MIB, Terms(SEED)))
    sums = simulated(trace(added, (1.0, Read(Reading(900, 400))), (2.0, Read(Reading(900, 400)))))
    assert (sums.steps_up, sums.peak_bytes) == (0, 256 * MIB)


# --- the model's host ---------------------------------------------------------------------------


def test_steps_follow_the_recheck() -> None:
    low = trace(*lasting(0, 12))
    steps = {
        each: simulated(low, "margin=4G", f"recheck={each}").steps_up
        for each in ("500ms", "1s", "4s")
    }
    assert steps == {"500ms": 16, "1s": 12, "4s": 3}


def test_host_has_what_balloons_hold_more_than_they_held() -> None:
    """100 MiB too little: a step of 64 MiB does not do, two do, and nothing is low afterwards."""
    sums = simulated(trace(*lasting(300, 60)))
    assert (sums.steps_up, sums.peak_bytes, sums.most_missing_mib) == (2, 128 * MIB, 100)
    assert 1.0 <= sums.low_s < 2.0


def test_balloon_that_was_recorded_is_in_the_figures_already() -> None:
    recorded = [*lasting(300, 60), (0.5, Moved(WEB, 128 * MIB))]
    sums = simulated(trace(*sorted(recorded, key=_at_s)))
    # 300 MiB are what the host has with the 128 MiB of the record: 228 MiB are needed for 400.
    assert sums.peak_bytes == 256 * MIB


def test_margin_and_floor_and_profile_are_others() -> None:
    of = trace(*lasting(300, 60, VmSettings()))
    assert simulated(of, "margin=256M").steps_up == 0
    assert simulated(of, "margin=1G", "floor=1.5G").peak_bytes == 512 * MIB
    assert simulated(of, "margin=4G", "ceiling=64M").peak_bytes == 64 * MIB
    assert simulated(of, "margin=8G").in_need == 0


def test_careful_guest_that_would_lack_memory_is_in_need_and_a_seed_one_is_not_asked() -> None:
    events = lasting(0, 60, VmSettings())
    poor = [
        (at_s, Sampled(WEB, figures(at_s, 700)) if isinstance(event, Sampled) else event)
        for at_s, event in events
    ]
    careful = simulated(trace(*poor), "margin=4G")
    seed = simulated(trace(*poor), "margin=4G", profile=Profile.SEED)
    assert (careful.in_need, seed.in_need) == (1, 0)
    assert careful.peak_bytes < 700 * MIB
    assert seed.peak_bytes == 700 * MIB
    assert careful.reversals >= 1


def test_vm_that_goes_takes_its_balloon_along() -> None:
    events = [*lasting(0, 30), (30.0, Removed(WEB)), (60.0, Read(Reading(0, 400)))]
    sums = simulated(trace(*events))
    assert sums.byte_seconds < 30 * GIB
    assert sums.seconds == 60.0


def test_event_that_makes_no_sense_is_named_with_its_line() -> None:
    with pytest.raises(ConfigError, match=r"a\.trace:3: web has not been added"):
        World(trace((0.0, Read(None)), (0.0, Moved(WEB, 1))), Changes(SETTINGS), lambda: 0.0).run()


# --- the command --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("2s", 2.0), ("1.5m", 90.0), ("2d", 172800.0), ("1h", 3600.0)],
)
def test_time_is_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("assignment", "mistake"),
    [
        ("recheck", "recheck: has no value; write it like recheck=VALUE"),
        ("rechek=1s", "rechek=1s: there is no such setting; did you mean recheck?"),
        ("x", "x: there is no such setting; there are steps, recheck, "),
        ("recheck=1", "'1' is no time; write it like 500ms, 90s, 10m, 2h or 1d"),
        ("recheck=0s", "recheck_s is 0.0; it must be more than 0 seconds"),
        ("release-every=x\x1b", "is no time"),
        ("steps=0", "steps is 0; it must be from 1 to 1024"),
        ("steps=1.5", "'1.5' is no whole number"),
        ("margin=1", "'1' has no unit; write 1G or 1M"),
        ("floor=lots", "'lots' is not a size"),
    ],
)
def test_wrong_assignment_is_one_line_and_status_2(
    assignment: str, mistake: str, tmp_path: Path, capsys: Output
) -> None:
    assert main(["simulate", written(tmp_path), "--set", assignment]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("balloonctl simulate: --set ")
    assert mistake in err
    assert (out, err.count("\n"), err[:-1].isprintable()) == ("", 1, True)


def written(directory: Path, *, more: bytes = b"") -> str:
    """The file of a trace."""
    path = directory / "a.trace"
    lines = [encode_header(Header(0.0, SETTINGS)), encode_entry(Entry(1.0, Added(WEB, 2 * GIB)))]
    path.write_bytes(b"".join(lines) + more)
    return str(path)


@pytest.mark.parametrize(
    ("content", "mistake"),
    [
        (b"", ":1: is no trace of balloond's; record one with balloonctl record, or balloond"),
        (b"a letter\n", ":1: is no trace of balloond's"),
        (b'{"balloond_trace":2}\n', ":1: is a trace of version 2, and this balloonctl reads 1"),
        (encode_header(Header(0.0, SETTINGS)), ": has no entries: nothing was recorded"),
        (encode_header(Header(0.0, SETTINGS)) + b"{}\n", ":2: t: is missing"),
        (
            encode_header(Header(float(MOST_BEGAN_S), SETTINGS)),
            ":1: began_s: is a time that no clock has",
        ),
        (
            encode_header(Header(0.0, SETTINGS))
            + encode_entry(Entry(float(MOST_CLOCK_S), Read(None))),
            ":2: t: is a time that no clock has",
        ),
        (encode_header(Header(0.0, SETTINGS)) + b"[" * 100_000 + b"\n", ":2: is no JSON"),
        (
            encode_header(Header(0.0, SETTINGS))
            + encode_entry(Entry(9.0, Read(None)))
            + encode_entry(Entry(1.0, Read(None))),
            ":3: t: is earlier than on the line above",
        ),
        (
            encode_header(Header(0.0, SETTINGS))
            + encode_entry(Entry(1.0, Added(WEB, GIB)))
            + encode_entry(Entry(1.0, Added(WEB, GIB))),
            ":3: web has a policy already",
        ),
    ],
)
def test_file_that_is_no_trace_is_one_line_and_status_2(
    content: bytes, mistake: str, tmp_path: Path, capsys: Output
) -> None:
    path = tmp_path / "a.trace"
    path.write_bytes(content)
    assert main(["simulate", str(path)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"balloonctl simulate: {path}{mistake}")


@pytest.mark.parametrize(
    ("times", "mistake"),
    [
        (
            [0.0, 30 * 365 * DAY_S],
            ":4: nothing is recorded for 10,950.0 days before this line, and a model has at most "
            "one day without; cut the trace here",
        ),
        (
            [day * DAY_S for day in range(1000)],
            ": it is of 999 days, and a model of 60 at most; cut it",
        ),
    ],
    ids=["a gap", "many gaps"],
)
@pytest.mark.parametrize("options", [["--set", "recheck=2s"], ["--profile", "all"]])
def test_trace_of_decades_has_no_model_and_is_replayed_all_the_same(
    times: list[float], mistake: str, options: list[str], tmp_path: Path, capsys: Output
) -> None:
    path = tmp_path / "a.trace"
    entries = [Entry(at_s, Looked(Reading(100, 400))) for at_s in times]
    entries.insert(0, Entry(0.0, Added(WEB, 2 * GIB)))
    lines = [encode_header(Header(0.0, SETTINGS)), *map(encode_entry, entries)]
    path.write_bytes(b"".join(lines))

    assert main(["simulate", str(path)]) == 0
    capsys.readouterr()
    assert main(["simulate", str(path), *options]) == 2
    assert capsys.readouterr() == ("", f"balloonctl simulate: {path}{mistake}\n")


def test_last_line_without_an_end_is_left_out_and_that_is_said(
    tmp_path: Path, capsys: Output
) -> None:
    assert main(["simulate", written(tmp_path, more=b'{"t":2.0,"ev')]) == 0
    assert "its last line is incomplete, and was left out\n" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted(TRACES.glob("*.trace")), ids=lambda path: path.stem)
def test_shipped_trace_is_decided_the_same_again(path: Path, capsys: Output) -> None:
    assert main(["simulate", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["first_other_line"], told["lost"], told["is_cut"]) == (None, 0, False)
    assert told["decisions"] > 30
    assert told["recorded"]["steps_up"] > 0 < told["recorded"]["low_s"]


@pytest.mark.parametrize("path", sorted(TRACES.glob("*.trace")), ids=lambda path: path.stem)
def test_model_of_a_shipped_trace_is_near_to_what_was_recorded(path: Path, capsys: Output) -> None:
    assert main(["simulate", str(path), "--set", "recheck=2s", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    recorded, modelled, changed = told["recorded"], told["modelled"], told["changed"]
    assert modelled["seconds"] == pytest.approx(recorded["seconds"], rel=0.01)
    assert modelled["byte_seconds"] == pytest.approx(recorded["byte_seconds"], rel=0.25)
    assert changed["low_s"] > modelled["low_s"]


def test_table_fits_64_columns_and_names_what_is_changed(capsys: Output) -> None:
    path = min(TRACES.glob("*.trace"))
    assert main(["simulate", str(path), "--set", "recheck=2s", "--profile", "seed"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "changed: recheck=2s" in lines
    assert "changed: profile=seed" in lines
    (head,) = [line.split() for line in lines if line.endswith("changed")]
    assert head == ["recorded", "modelled", "changed"]
    table = [line for line in lines if line[:1].islower() and ":" not in line]
    assert [line.split("  ")[0] for line in table][:2] == [
        "time below the margin",
        "most below the margin",
    ]
    assert max(map(len, table)) <= 64
