"""All VMs of a host in one pure decider: who is told what by one reading, and when it wakes."""

import csv
from itertools import pairwise
from pathlib import Path

import pytest

from balloon_daemon.errors import StateError
from balloon_daemon.sizing.balloon_policy import PolicySettings, PolicyState
from balloon_daemon.sizing.decision import NeverLow, Reading, Reason
from balloon_daemon.sizing.host_events import (
    Added,
    Event,
    Halted,
    HostStep,
    Looked,
    Removed,
    Resized,
    Restored,
    Target,
    Woke,
)
from balloon_daemon.sizing.host_policy import HostPolicy
from balloon_daemon.sizing.terms import Terms
from balloon_daemon.sizing.vm_settings import Profile, VmSettings
from balloon_daemon.units import GIB, MIB, VmId
from tests.harness.faults import fault

RECORDINGS = Path(__file__).parents[1] / "data" / "recordings"

A, B, C = (VmId(number, f"vm{number}") for number in (1, 2, 3))
LOW = Reading(available_mib=10, margin_mib=400)
PLENTY = Reading(available_mib=1 << 20, margin_mib=400)
STEP = 32 * MIB
"""Of a VM of 1 GiB: half of it in 16 steps."""


class Decider:
    """A host's policy without jitter, a clock, and whatever a test says against more."""

    def __init__(self) -> None:
        settings = PolicySettings(
            recheck_jitter_s=0.0, release_after_jitter_s=0.0, release_every_jitter_s=0.0
        )
        self.objections: dict[VmId, Reason] = {}
        self.asked: list[tuple[VmId, int]] = []
        self.policy = HostPolicy(settings, lambda: 0.0, self._against_more)
        self.now_s = 1000.0

    def _against_more(self, vm: VmId, level: int) -> Reason | None:
        self.asked.append((vm, level))
        return self.objections.get(vm)

    def step(self, event: Event) -> HostStep:
        return self.policy.step(event, self.now_s)


@pytest.fixture
def host() -> Decider:
    return Decider()


def reasons(step: HostStep) -> list[tuple[VmId, Reason]]:
    return [(decided.vm, decided.decision.reason) for decided in step.decisions]


def test_vm_that_is_added_is_told_nothing_and_wakes_its_host_at_once(host: Decider) -> None:
    step = host.step(Added(A, GIB))
    assert step == HostStep((Target(A, 0),), (), host.now_s, listen=True)
    assert host.policy.policy(A).max_bytes == 512 * MIB


def test_one_low_reading_gives_every_listening_vm_its_target(host: Decider) -> None:
    for vm in (A, B, C):
        host.step(Added(vm, GIB))

    step = host.step(Woke(LOW))

    assert step.targets == (Target(A, STEP), Target(B, STEP), Target(C, STEP))
    assert {decided.decision.reading for decided in step.decisions} == {LOW}
    assert (step.listen, step.wake_at_s) == (False, host.now_s + 1.0)


def test_vm_that_waits_for_its_recheck_hears_nothing(host: Decider) -> None:
    host.step(Added(A, GIB))
    host.step(Woke(LOW))
    host.now_s += 0.5
    host.step(Added(B, GIB))

    assert host.step(Woke(LOW)).targets == (Target(B, STEP),)


@fault("low memory comes while some VMs listen again in turns")
def test_recheck_of_one_vm_lets_all_that_listen_hear_the_same_reading(host: Decider) -> None:
    host.step(Added(A, GIB))
    host.step(Woke(LOW))
    host.now_s += 0.5
    host.step(Added(B, GIB))
    host.step(Woke(PLENTY))
    host.now_s += 0.5

    step = host.step(Woke(LOW))

    assert reasons(step) == [(A, Reason.RECHECK), (B, Reason.LOW_MEMORY), (A, Reason.LOW_MEMORY)]


def test_releases_that_are_due_together_are_decided_on_one_reading(host: Decider) -> None:
    for vm in (A, B):
        host.step(Added(vm, GIB))
    host.step(Woke(LOW))
    host.now_s += 1.0
    host.step(Woke(PLENTY))
    host.now_s += 59.0

    step = host.step(Woke(PLENTY))

    assert step.targets == (Target(A, 0), Target(B, 0))
    assert step.wake_at_s == host.now_s + 30.0
    assert step.listen


def test_low_memory_at_a_late_recheck_puts_off_a_release_that_is_due_too(host: Decider) -> None:
    host.step(Added(A, GIB))
    host.step(Woke(LOW))
    host.now_s += 100.0

    step = host.step(Woke(LOW))

    assert reasons(step) == [(A, Reason.RECHECK), (A, Reason.LOW_MEMORY)]
    assert host.policy.policy(A).state().release_at_s == host.now_s + 60.0


def test_low_reading_of_a_release_alone_tells_nobody(host: Decider) -> None:
    host.step(Added(A, GIB))
    host.step(Woke(LOW))
    host.now_s += 1.0
    host.step(Woke(PLENTY))
    host.now_s += 59.0
    assert reasons(host.step(Woke(LOW))) == [(A, Reason.NOT_ENOUGH_BACK)]


@pytest.mark.parametrize("seen", [None, NeverLow("off"), PLENTY])
def test_what_is_not_low_tells_nobody(host: Decider, seen: Reading | NeverLow | None) -> None:
    host.step(Added(A, GIB))
    step = host.step(Looked(seen))
    assert (step.targets, step.decisions, step.wake_at_s, step.listen) == ((), (), None, True)


def test_objection_holds_that_vm_alone(host: Decider) -> None:
    host.step(Added(A, GIB))
    host.step(Added(B, GIB))
    host.objections[A] = Reason.NO_ROOM

    step = host.step(Woke(LOW))

    assert reasons(step) == [(A, Reason.NO_ROOM), (B, Reason.LOW_MEMORY)]
    assert step.targets == (Target(B, STEP),)
    assert host.asked == [(A, 0), (B, 0)]


def test_vm_that_has_given_all_is_asked_for_no_objection_while_priorities_are_equal(
    host: Decider,
) -> None:
    host.step(Added(A, GIB))
    for _ in range(16):
        host.step(Woke(LOW))
        host.now_s += 1.0
    host.asked.clear()
    host.objections[A] = Reason.NO_ROOM

    assert reasons(host.step(Woke(LOW))) == [(A, Reason.RECHECK), (A, Reason.AT_MAXIMUM)]
    assert host.asked == []

    # Where priorities differ, A is asked even at its maximum: the answer decides whether VMs of
    # higher priorities wait for A once A's balloon has shrunk.
    host.step(Added(B, GIB, terms=Terms(VmSettings(profile=Profile.SEED, priority=60))))
    host.now_s += 1.0
    host.step(Woke(LOW))
    assert (A, 16) in host.asked


def test_decision_that_changes_nothing_is_repeated_from_the_second_on(host: Decider) -> None:
    host.step(Added(A, 100 * MIB))
    repeated = []
    for _ in range(3):
        step = host.step(Woke(LOW))
        repeated += [d.repeated for d in step.decisions if d.decision.reason is Reason.NO_BALLOON]
        host.now_s += 1.0
    assert repeated == [False, True, True]


def test_vm_that_is_removed_is_told_no_more_and_wakes_nobody(host: Decider) -> None:
    host.step(Added(A, GIB))
    host.step(Added(B, GIB))
    host.step(Woke(LOW))

    step = host.step(Removed(B))
    assert step.wake_at_s == host.now_s + 1.0
    step = host.step(Removed(A))

    assert step == HostStep((), (), None, listen=False)
    assert not host.policy.governs(A)


def test_vm_with_a_balloon_is_told_the_level_below_it(host: Decider) -> None:
    step = host.step(Added(A, GIB, 100 * MIB))
    assert step.targets == (Target(A, 3 * STEP),)
    assert reasons(step) == [(A, Reason.ADOPTED)]


def test_smaller_size_lowers_the_target_and_a_larger_one_raises_none(host: Decider) -> None:
    host.step(Added(A, 4 * GIB))
    for _ in range(16):
        host.step(Woke(LOW))
        host.now_s += 1.0
    assert host.step(Resized(A, GIB)).targets == (Target(A, 512 * MIB),)
    assert host.step(Resized(A, 4 * GIB)).targets == (Target(A, 384 * MIB),)
    assert host.step(Resized(A, 4 * GIB)).targets == ()


def test_restored_vms_go_on_with_level_and_deadlines_and_share_a_reading(host: Decider) -> None:
    now_s = host.now_s
    kept = host.step(Restored(A, GIB, PolicyState(4, now_s + 0.5, now_s + 20.0), 4 * STEP))
    assert kept.targets == (Target(A, 4 * STEP),)
    assert (kept.listen, kept.wake_at_s) == (False, now_s + 0.5)
    for vm in (B, C):
        step = host.step(Restored(vm, GIB, PolicyState(2, None, now_s + 20.0), 2 * STEP))
        assert (step.listen, step.wake_at_s) == (True, now_s)

    assert host.step(Woke(LOW)).targets == (Target(B, 3 * STEP), Target(C, 3 * STEP))


@pytest.mark.parametrize("state", [PolicyState(17, None, 1.0), PolicyState(3, None, None)])
def test_state_that_no_policy_can_be_in_is_refused_and_adds_nothing(
    host: Decider, state: PolicyState
) -> None:
    with pytest.raises(StateError):
        host.step(Restored(A, GIB, state, 0))
    assert not host.policy.governs(A)


@pytest.mark.parametrize("event", [Removed(B), Resized(B, GIB), Added(A, GIB)])
def test_event_that_makes_no_sense_is_refused_and_changes_nothing(
    host: Decider, event: Event
) -> None:
    before = host.step(Added(A, GIB))
    with pytest.raises(StateError):
        host.step(event)
    assert host.step(Resized(A, GIB))[2:] == before[2:]


def test_nothing_is_decided_once_it_is_halted(host: Decider) -> None:
    host.step(Added(A, GIB))
    host.step(Woke(LOW))
    nothing = HostStep((), (), None, listen=False)

    assert host.step(Halted()) == nothing
    host.now_s += 300.0

    events = (Woke(LOW), Looked(LOW), Added(B, GIB), Added(C, GIB, STEP), Resized(A, 4 * GIB))
    assert [host.step(event) for event in events] == [nothing] * len(events)
    assert host.step(Restored(B, GIB, PolicyState(1, None, 1.0), STEP)) == nothing
    assert not host.policy.governs(B)
    # What another balloond would need of it is as it was.
    assert (host.policy.policy(A).level, host.policy.vm_mem_bytes(A)) == (1, GIB)


def test_thousands_of_moved_deadlines_leave_one_wake_up(host: Decider) -> None:
    host.step(Added(A, GIB))
    step = host.step(Woke(LOW))
    for _ in range(5000):
        assert step.wake_at_s == host.now_s + 1.0
        host.now_s += 1.0
        step = host.step(Woke(LOW))
    host.now_s += 1.0
    assert host.step(Woke(PLENTY)).wake_at_s == host.now_s - 1.0 + 60.0


@pytest.mark.parametrize("name", ["k61-burst", "k72-anon"])
def test_recorded_guest_gets_the_targets_of_its_recording(host: Decider, name: str) -> None:
    with open(RECORDINGS / f"{name}.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if float(row["t"]) >= 0]
    host.step(Added(A, GIB))
    told: list[int] = []
    for row, after in pairwise(rows):
        # Rows are a second apart, but for some hundredths: the recording's own clock was late.
        host.policy.note_actual(A, int(row["balloon_mib"]) * MIB)
        targets = host.step(Woke(LOW)).targets
        told += [target.target_bytes for target in targets]
        assert told[-1] == int(after["target_mib"]) * MIB
        host.now_s += 1.0
    # Neither guest is told its last target again: the first has taken pages back, the second's
    # balloon moves all the time.
    assert len(told) == 16


@fault("stops at the first page that it cannot have")
def test_driver_that_has_stopped_short_is_told_its_target_each_30_s(host: Decider) -> None:
    host.step(Added(A, GIB))
    told_at: list[float] = []
    for _ in range(120):
        step = host.step(Woke(LOW))
        told_at += [host.now_s - 1000.0 for target in step.targets if target.target_bytes]
        if host.now_s == 1010.0:
            host.policy.note_actual(A, 5 * STEP)
        host.now_s += 1.0
    assert told_at[:16] == [float(second) for second in range(16)]
    assert told_at[16:] == [45.0, 75.0, 105.0]


def test_guest_that_has_taken_pages_back_is_not_told_to_give_them_again(host: Decider) -> None:
    host.step(Added(A, GIB))
    told: list[int] = []
    for second in range(200):
        if second == 20:
            host.policy.note_actual(A, 400 * MIB)
        if second == 30:
            host.policy.note_actual(A, 300 * MIB)
        told += [target.target_bytes for target in host.step(Woke(LOW)).targets]
        host.now_s += 1.0
    assert len(told) == 16


def test_floor_is_checked_again_when_the_size_changes(host: Decider) -> None:
    terms = Terms(VmSettings(floor_bytes=3 * GIB, profile=Profile.SEED))
    host.step(Added(A, 4 * GIB, terms=terms))
    for _ in range(16):
        host.step(Woke(LOW))
        host.now_s += 1.0
    assert host.policy.target_bytes(A) == GIB
    assert host.step(Resized(A, 3 * GIB + 256 * MIB)).targets == (Target(A, 256 * MIB),)
    assert host.step(Resized(A, 2 * GIB)).targets == (Target(A, 0),)


def test_row_of_a_balloond_that_knew_no_floor_is_restored_without_a_balloon(
    host: Decider,
) -> None:
    terms = Terms(VmSettings(floor_bytes=GIB))
    step = host.step(Restored(A, GIB, PolicyState(4, None, host.now_s + 20.0), 4 * STEP, terms))
    assert step.targets == (Target(A, 0),)
