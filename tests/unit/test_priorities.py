"""Who is squeezed first, and who gets memory back first."""

from balloon_daemon.sizing.balloon_policy import PolicySettings, PolicyState
from balloon_daemon.sizing.decision import Reading, Reason
from balloon_daemon.sizing.host_events import (
    Added,
    HostStep,
    Removed,
    Resized,
    Restored,
    Woke,
)
from balloon_daemon.sizing.host_policy import HostPolicy
from balloon_daemon.sizing.priorities import MORE_WAITS
from balloon_daemon.sizing.terms import Terms
from balloon_daemon.sizing.vm_settings import Profile, VmSettings
from balloon_daemon.units import GIB, MIB, VmId
from tests.harness.faults import fault

LAST, MIDDLE, FIRST = (VmId(number, f"vm{number}") for number in (1, 2, 3))
PRIORITY = {LAST: 10, MIDDLE: 0, FIRST: -5}
LOW = Reading(available_mib=10, margin_mib=400)
STEP = 32 * MIB
"""Of a VM of 1 GiB: half of it in 16 steps."""

MOST_WAITS = 16 + MORE_WAITS
"""How many times a VM waits for one other priority."""


class Host:
    """A host's policy without jitter, with VMs of 1 GiB of three priorities."""

    def __init__(self) -> None:
        settings = PolicySettings(
            recheck_jitter_s=0.0, release_after_jitter_s=0.0, release_every_jitter_s=0.0
        )
        self.objections: dict[VmId, Reason] = {}
        self.policy = HostPolicy(settings, lambda: 0.0, lambda vm, _level: self.objections.get(vm))
        self.now_s = 1000.0
        for vm in PRIORITY:
            self.policy.step(Added(vm, GIB, terms=terms(vm)), self.now_s)

    def wake(self, seen: Reading) -> HostStep:
        step = self.policy.step(Woke(seen), self.now_s)
        self.now_s += 1.0
        return step

    def attach_anew(self, vm: VmId) -> None:
        self.policy.step(Removed(vm), self.now_s)
        self.policy.step(Added(vm, GIB, terms=terms(vm)), self.now_s)

    @property
    def levels(self) -> list[int]:
        return [self.policy.policy(vm).level for vm in (LAST, MIDDLE, FIRST)]


def terms(vm: VmId) -> Terms:
    return Terms(VmSettings(priority=PRIORITY[vm], profile=Profile.SEED))


def reasons(step: HostStep) -> dict[VmId, Reason]:
    return {decided.vm: decided.decision.reason for decided in step.decisions}


def test_vm_steps_up_only_when_all_of_lower_priority_are_at_their_maximum() -> None:
    host = Host()
    for level in range(1, 17):
        step = host.wake(LOW)
        assert host.levels == [0, 0, level]
        assert reasons(step)[LAST] is Reason.LOWER_FIRST
    for level in range(1, 17):
        host.wake(LOW)
        assert host.levels == [0, level, 16]
    host.wake(LOW)
    assert host.levels == [1, 16, 16]


def test_vm_that_cannot_give_holds_up_nobody() -> None:
    host = Host()
    host.objections = {FIRST: Reason.NO_ROOM, MIDDLE: Reason.FRUITLESS}
    host.wake(LOW)
    host.wake(LOW)
    assert host.levels == [1, 0, 0]


def test_vm_too_small_for_a_balloon_holds_up_nobody_and_one_that_is_gone_neither() -> None:
    host = Host()
    host.policy.step(Removed(FIRST), host.now_s)
    host.policy.step(Removed(MIDDLE), host.now_s)
    host.policy.step(Added(FIRST, 100 * MIB, terms=terms(FIRST)), host.now_s)
    host.wake(LOW)
    assert host.policy.policy(LAST).level == 1


def test_memory_goes_back_to_the_highest_priority_first() -> None:
    host = Host()
    for vm in PRIORITY:
        host.policy.step(Removed(vm), host.now_s)
    for vm in PRIORITY:
        state = PolicyState(2, None, host.now_s + 20.0)
        host.policy.step(Restored(vm, GIB, state, 2 * STEP, terms(vm)), host.now_s)
    # A step needs the margin and 64 MiB, and what those of a higher priority still have: 32 MiB
    # each, once each has had a step.
    host.now_s += 20.0
    step = host.wake(Reading(400 + 64 + 50, 400))
    assert host.levels == [1, 1, 2]
    refused = step.decisions[-1].decision
    assert (refused.reason, refused.needed_mib) == (Reason.NOT_ENOUGH_BACK, 400 + 64 + 2 * 32)
    assert refused.reading == Reading(400 + 64 + 50, 400)


def test_plenty_of_memory_goes_back_to_all_at_once() -> None:
    host = Host()
    for vm in PRIORITY:
        host.policy.step(Removed(vm), host.now_s)
    for vm in PRIORITY:
        state = PolicyState(16, None, host.now_s + 20.0)
        host.policy.step(Restored(vm, GIB, state, 512 * MIB, terms(vm)), host.now_s)
    host.now_s += 20.0
    host.wake(Reading(1 << 20, 400))
    assert host.levels == [15, 15, 15]


@fault("a VM would keep those of other priorities waiting")
def test_vm_that_attaches_anew_over_and_over_holds_up_those_of_higher_priority_no_longer() -> None:
    host = Host()
    for _ in range(MOST_WAITS):
        host.wake(LOW)
        host.attach_anew(FIRST)
        assert host.levels == [0, 0, 0]
    for level in range(1, 17):
        host.wake(LOW)
        host.attach_anew(FIRST)
        assert host.levels == [0, level, 0]
    for _ in range(2 * MOST_WAITS):
        host.wake(LOW)
        host.attach_anew(FIRST)
    assert host.levels == [16, 16, 0]


@fault("a VM would keep those of other priorities waiting")
def test_vm_whose_size_changes_over_and_over_holds_up_those_of_higher_priority_no_longer() -> None:
    host = Host()
    for _ in range(MOST_WAITS + 1):
        host.wake(LOW)
        for size in (GIB, 64 * GIB):
            host.policy.step(Resized(FIRST, size), host.now_s)
    assert host.levels == [0, 1, 0]


def test_vm_waits_anew_for_lower_priorities_once_memory_was_not_low_for_a_while() -> None:
    host = Host()
    host.policy.step(Removed(MIDDLE), host.now_s)
    for _ in range(MOST_WAITS - 1):
        host.wake(LOW)
        host.attach_anew(FIRST)
    host.now_s += 60.0
    for _ in range(MOST_WAITS):
        assert reasons(host.wake(LOW))[LAST] is Reason.LOWER_FIRST
        host.attach_anew(FIRST)
    assert reasons(host.wake(LOW))[LAST] is Reason.LOW_MEMORY


@fault("a VM would keep those of other priorities waiting")
def test_vm_that_claims_more_memory_than_there_is_keeps_none_of_the_others_for_ever() -> None:
    host = Host()
    for vm, size in ((LAST, 1 << 50), (MIDDLE, GIB), (FIRST, GIB)):
        host.policy.step(Removed(vm), host.now_s)
        state = PolicyState(16, None, host.now_s + 20.0)
        host.policy.step(Restored(vm, size, state, 0, terms(vm)), host.now_s)
    host.now_s += 20.0
    enough = Reading(400 + 2 * 32, 400)
    for waits in range(MOST_WAITS):
        assert host.levels == [16, 16, 16], waits
        host.wake(enough)
        host.now_s += 29.0
    host.wake(enough)
    assert host.levels == [16, 15, 16]
    for _ in range(MOST_WAITS + 16):
        host.now_s += 29.0
        host.wake(enough)
    assert host.levels == [16, 0, 0]
