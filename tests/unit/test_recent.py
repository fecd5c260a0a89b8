"""The last events: which are kept, how many, and who is told of them."""

import json

from balloon_daemon.events import (
    Connected,
    Decided,
    Event,
    Listening,
    TargetReached,
    VmAttached,
    VmDriven,
    VmNotDriven,
    VmNotSought,
)
from balloon_daemon.events.driven import Fault
from balloon_daemon.records.recent import KEPT_EACH, KEPT_IN_ALL, MOST_VMS, Recent
from balloon_daemon.sizing.decision import Decision, Reading, Reason
from balloon_daemon.status import Undriven
from balloon_daemon.units import GIB, MIB, VmId

WEB, DB = VmId(1, "web"), VmId(2, "db")
UP = Decision(Reason.LOW_MEMORY, 0, 1, 16, 32 * MIB, Reading(10, 400))


def kept(*events: Event) -> Recent:
    recent = Recent()
    for at_s, event in enumerate(events):
        recent(event, float(at_s))
    return recent


def words_of(recent: Recent, vm: VmId) -> list[str]:
    return [json.loads(line)["event"] for line in recent.lines_of(vm)]


def test_events_are_kept_with_their_vms_name_as_the_log_would_write_them() -> None:
    recent = kept(Listening("/run/s"), VmAttached(WEB, GIB, 512 * MIB, 16), Decided(WEB, UP))
    names, lines = zip(*recent.lines(), strict=True)
    assert names == ("", "web", "web")
    entry = json.loads(lines[2])
    assert (entry["event"], entry["vm"], entry["reason"]) == ("decided", "web", "low-memory")
    assert entry["time"] == "1970-01-01T00:00:02.000+00:00"
    assert entry["message"].startswith("low memory (10 MiB available, margin 400 MiB): balloon")


def test_events_about_a_vm_are_kept_apart_from_those_about_others() -> None:
    recent = kept(VmAttached(WEB, GIB, 0, 16), VmAttached(DB, GIB, 0, 16), Decided(WEB, UP))
    assert words_of(recent, WEB) == ["vm-attached", "decided"]
    assert words_of(recent, DB) == ["vm-attached"]
    assert words_of(recent, VmId(3, "other")) == []


def test_events_for_debugging_and_without_a_line_are_left_out() -> None:
    recent = kept(Decided(WEB, UP, quiet=True), Connected(WEB, 0), TargetReached(WEB, MIB, 0))
    assert words_of(recent, WEB) == ["target-reached"]


def test_a_vm_that_has_many_events_keeps_the_last_ones_and_takes_nobodys_place() -> None:
    recent = kept(VmAttached(DB, GIB, 0, 16))
    for number in range(KEPT_IN_ALL + 1):
        recent(TargetReached(WEB, number * MIB, 0), 1.0)
    assert words_of(recent, DB) == ["vm-attached"]
    last = [json.loads(line)["actual_bytes"] for line in recent.lines_of(WEB)]
    assert last == [number * MIB for number in range(KEPT_IN_ALL + 1)][-KEPT_EACH:]
    assert len(list(recent.lines())) == KEPT_IN_ALL


def test_of_very_many_vms_the_one_with_the_oldest_event_is_forgotten() -> None:
    recent = Recent()
    vms = [VmId(number, f"vm{number}") for number in range(MOST_VMS + 1)]
    for vm in [*vms[:MOST_VMS], vms[0], vms[MOST_VMS]]:
        recent(TargetReached(vm, 0, 0), 1.0)
    assert len(words_of(recent, vms[0])) == 2
    assert words_of(recent, vms[1]) == []
    assert len(words_of(recent, vms[MOST_VMS])) == 1


def test_follower_is_told_events_from_then_on_until_it_leaves() -> None:
    recent, told = kept(Listening("/run/s")), list[tuple[str, str]]()

    def follower(name: str, line: str) -> None:
        told.append((name, json.loads(line)["event"]))

    recent.follow(follower)
    recent(Decided(WEB, UP), 1.0)
    recent(Decided(WEB, UP, quiet=True), 1.0)
    recent.leave(follower)
    recent(Decided(WEB, UP), 2.0)
    assert told == [("web", "decided")]


def test_vms_that_are_not_driven_are_known_with_the_last_reason_until_they_are() -> None:
    recent = kept(
        VmNotDriven("web", "/run/web", Fault.NOT_THERE),
        VmNotDriven("vm10", "/run/vm10", Fault.NOT_THERE),
        VmNotDriven("old", "/run/old", Fault.HELD),
        VmNotDriven("web", "/run/web", Fault.PINNED, quiet=True),
        VmNotDriven("db", "/run/db", Fault.NO_BALLOON),
        VmNotDriven("vm2", "/run/vm2", Fault.NOT_THERE),
        VmNotDriven("vm02", "/run/vm02", Fault.NOT_THERE),
        VmNotSought("vm02"),
        VmNotSought("old"),
    )
    assert [(one.name, one.fault) for one in recent.undriven()] == [
        ("db", "no-balloon"),
        ("vm2", "not-there"),
        ("vm10", "not-there"),
        ("web", "pinned"),
    ]
    for name in ("vm2", "vm10"):
        recent(VmNotSought(name), 3.0)
    recent(VmDriven(WEB, "/run/web", GIB, None), 3.0)
    assert list(recent.undriven("web")) == []
    (left,) = recent.undriven()
    assert left == Undriven("db", "/run/db", "no-balloon", left.why)
    assert left.why.startswith("db: /run/db: ")


def test_lines_are_made_one_in_each_step_and_later_events_are_no_more_steps() -> None:
    recent = kept(VmAttached(WEB, GIB, 0, 16))
    steps = 0
    for number, _ in enumerate(recent.word()):
        steps += 1
        for _ in range(KEPT_IN_ALL):
            recent(TargetReached(DB, number, 0), 1.0)
    assert steps == 1
    assert [name for name, _ in recent.lines()] == ["db"] * KEPT_IN_ALL
    assert len(list(recent.word())) == 0


def test_name_has_lines_for_as_long_as_its_last_event_is_kept() -> None:
    recent = kept(VmAttached(WEB, GIB, 512 * MIB, 16))
    assert recent.has_lines_of("web")
    assert not recent.has_lines_of("db")
    for _ in range(KEPT_IN_ALL):
        recent(Decided(DB, UP), 1.0)
    assert not recent.has_lines_of("web")
