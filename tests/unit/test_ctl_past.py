"""What ``balloonctl plot`` makes of a history's rows."""

from typing import Any

import pytest

from balloon_daemon.ctl.charts.past import Kind, past_of, staircase
from balloon_daemon.events import Decided, Event, GuestInNeed, VmAttached
from balloon_daemon.records.words import worded
from balloon_daemon.sizing.decision import Decision, Reading, Reason, Sign
from balloon_daemon.units import GIB, MIB, VmId

WEB = VmId(1, "web")
LOW = Reading(10, 400)


def sample(at_s: float, vm: str = "web", **figures: int) -> dict[str, Any]:
    names = ("memory", "balloon", "target", "available", "margin", "held")
    return {"at_s": at_s, "vm": vm, **dict.fromkeys(names), **figures}


def event(at_s: float, event: Event) -> dict[str, Any]:
    """A row as the history keeps it: with the log's own words."""
    line = worded(event)
    assert line is not None
    return {"at_s": at_s, "vm": "web", "event": line.word, "message": line.message}


def decided(at_s: float, before: int, after: int) -> dict[str, Any]:
    decision = Decision(Reason.LOW_MEMORY, before, after, 16, after * 192 * MIB, LOW)
    return event(at_s, Decided(WEB, decision))


@pytest.mark.parametrize(
    ("before", "after", "kind", "target_bytes"),
    [
        (3, 4, Kind.GROWS, 768 * MIB),
        (0, 16, Kind.GROWS, 3 * GIB),
        (2, 1, Kind.SHRINKS, 192 * MIB),
        (1, 0, Kind.SHRINKS, 0),
    ],
)
def test_decision_of_the_log_is_a_step_to_its_size(
    before: int, after: int, kind: Kind, target_bytes: int
) -> None:
    (mark,) = past_of([], [decided(5.0, before, after)]).marks
    assert (mark.at_s, mark.vm, mark.kind, mark.target_bytes) == (5.0, "web", kind, target_bytes)


def test_decision_that_changes_nothing_and_an_attached_vm_are_no_marks() -> None:
    rows = [decided(5.0, 3, 3), event(4.0, VmAttached(WEB, 4 * GIB, 3 * GIB, 16))]
    assert past_of([], rows).marks == []


def test_finding_about_a_guest_is_a_mark_with_its_sentence() -> None:
    row = event(6.0, GuestInNeed(WEB, (Sign.SWAPS_IN,), 192 * MIB, 60.0))
    (mark,) = past_of([], [row]).marks
    assert (mark.kind, mark.target_bytes) == (Kind.FINDING, None)
    assert mark.message.startswith("in need (swaps-in): giving 192 MiB back")


def test_time_without_samples_divides_them_and_so_does_a_clock_set_back() -> None:
    times = [0.0, 60.0, 120.0, 3600.0, 3660.0, 1000.0, 1060.0]
    past = past_of([sample(at_s) for at_s in times] + [sample(60.0, "")], [])
    assert [[row["at_s"] for row in run] for run in past.vms["web"]] == [
        [0.0, 60.0, 120.0],
        [3600.0, 3660.0],
        [1000.0, 1060.0],
    ]
    assert [[row["at_s"] for row in run] for run in past.host] == [[60.0]]
    assert past.span() == (0.0, 3660.0)


def test_target_has_the_decisions_between_two_samples_as_steps() -> None:
    samples = [sample(60.0, target=0), sample(120.0, target=2 * 192 * MIB)]
    events = [decided(30.0, 0, 1), decided(61.0, 0, 1), decided(62.0, 1, 2), decided(130.0, 2, 1)]
    past = past_of(samples, events)
    step = 192 * MIB
    assert staircase(past.vms["web"], past.marks) == [
        [(30.0, step), (60.0, 0), (61.0, step), (62.0, 2 * step), (120.0, 2 * step), (130.0, step)]
    ]
