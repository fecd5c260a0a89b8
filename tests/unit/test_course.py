"""What a picture of a trace shows: host and VMs against time, and what was found."""

from pathlib import Path

from balloon_daemon.ctl.charts.past import Kind, Mark
from balloon_daemon.ctl.simulate.course import GAP_S, course_of
from balloon_daemon.ctl.simulate.trace_file import read_trace
from balloon_daemon.records.trace import Decided, Entry, Header, Read, Recorded, Trace
from balloon_daemon.sizing.balloon_policy import PolicySettings, PolicyState
from balloon_daemon.sizing.decision import Reading, Reason
from balloon_daemon.sizing.host_events import Added, Found, Halted, Moved, Removed
from balloon_daemon.sizing.terms import Terms
from balloon_daemon.units import GIB, MIB, VmId

WEB = VmId(1, "web")
TRACES = Path(__file__).parents[2] / "docs/traces"


def trace(*entries: tuple[float, Recorded]) -> Trace:
    """A trace that began at 1,000 s since the epoch, when the monotonic clock showed 50 s."""
    return Trace("a.trace", Header(1000.0, PolicySettings()), [Entry(*each) for each in entries])


def found(level: int, balloon_bytes: int) -> Found:
    state = PolicyState(level, None, 90.0)
    return Found(WEB, 2 * GIB, state, balloon_bytes, Terms(), balloon_bytes, None, None)


def test_shipped_trace_shows_each_step_and_the_guest_in_need() -> None:
    past = course_of(read_trace(str(TRACES / "need.trace")))
    kinds = [mark.kind for mark in past.marks]
    assert (kinds.count(Kind.GROWS), kinds.count(Kind.SHRINKS)) == (24, 7)
    (need,) = [mark for mark in past.marks if mark.kind is Kind.FINDING]
    assert need.vm == "mail"
    assert need.message == "in need (little-available): 320 MiB go back"
    tops = {
        vm: max(row["balloon"] for run in runs for row in run) for vm, runs in past.vms.items()
    }
    assert tops == {"shop": GIB, "mail": 320 * MIB}


def test_recording_that_began_midway_begins_with_what_there_was() -> None:
    step = Entry(52.0, Read(Reading(9, 400)), decided=(Decided(WEB, Reason.LOW_MEMORY, 5, GIB),))
    whole = trace((50.0, Read(Reading(900, 400))), (50.0, found(4, 256 * MIB)))
    whole.entries.append(step)
    past = course_of(whole)
    (run,) = past.vms["web"]
    assert [(row["at_s"], row["balloon"], row["target"]) for row in run] == [
        (1000.0, 256 * MIB, 256 * MIB),
        (1002.0, 256 * MIB, GIB),
        (1002.0, 256 * MIB, GIB),
    ]
    assert past.marks == [Mark(1002.0, "web", Kind.GROWS, GIB, "low-memory")]


def test_balloon_that_was_there_when_balloond_began_is_no_step() -> None:
    adopted = Decided(WEB, Reason.ADOPTED, 4, 256 * MIB)
    added = Entry(50.0, Added(WEB, 2 * GIB, 256 * MIB), decided=(adopted,))
    whole = trace((50.0, Read(Reading(900, 400))))
    whole.entries.append(added)
    past = course_of(whole)
    assert past.marks == []
    assert past.vms["web"][0][0]["target"] == 256 * MIB


def test_time_without_figures_and_a_vm_that_is_gone_are_not_drawn() -> None:
    reading = Read(Reading(900, 400))
    past = course_of(
        trace(
            (50.0, reading),
            (50.0, found(1, 64 * MIB)),
            (51.0, Removed(WEB)),
            (55.0, Read(None)),
            (60.0, reading),
            (60.0 + GAP_S + 1, reading),
        )
    )
    assert [[row["at_s"] for row in run] for run in past.host] == [
        [1000.0],
        [1010.0],
        [1011.0 + GAP_S],
    ]
    assert [row["at_s"] for run in past.vms["web"] for row in run] == [1000.0, 1001.0]


def test_what_balloons_do_once_balloond_ends_is_not_drawn() -> None:
    past = course_of(
        trace(
            (50.0, Read(Reading(900, 400))),
            (50.0, found(1, 64 * MIB)),
            (51.0, Halted()),
            (52.0, Moved(WEB, 0)),
        )
    )
    assert [row["balloon"] for run in past.vms["web"] for row in run] == [64 * MIB] * 2
