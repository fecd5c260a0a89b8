"""Who is squeezed first, and who gets memory back first."""

from balloon_daemon.sizing.balloon_policy import PolicySettings, PolicyState
from balloon_daemon.sizing.decision import Reading, Reason
from balloon_daemon.sizing.host_events import (
    Added,
    HostStep,
    Looked,
    Removed,
    Resized,
    Restored,
    Woke,
)
from balloon_daemon.sizing.host_policy import HostPolicy
from balloon_daemon.sizing.terms import Terms
from balloon_daemon.sizing.vm_settings import Profile, VmSettings
from balloon_daemon.units import GIB, MIB, VmId

LAST, MIDDLE, FIRST = (VmId(number, f"vm{number}") for number in (1, 2, 3))
PRIORITY = {LAST: 10, MIDDLE: 0, FIRST: -5}
LOW = Reading(available_mib=10, margin_mib=400)
STEP = 32 * MIB
"""Of a VM of 1 GiB: half of it in 16 steps."""


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

    @property
    def levels(self) -> list[int]:
        return [self.level(vm) for vm in (LAST, MIDDLE, FIRST)]

    def level(self, vm: VmId) -> int:
        return self.policy.policy(vm).level


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


def test_vm_that_never_gets_to_its_maximum_holds_up_nobody_for_ever() -> None:
    # Its guest reports another size again and again: a larger one lowers the level.
    host = Host()
    for second in range(60):
        assert (host.levels[1] > 0) == (second > 31)  # Twice the 15 s that 16 steps take.
        host.policy.step(Resized(FIRST, GIB), host.now_s)
        host.wake(LOW)
        host.policy.step(Resized(FIRST, GIB // 2), host.now_s)
    assert host.levels[2] < 16
    # Another priority lower, as long again.
    assert host.levels[0] == 0
    for _ in range(3):
        host.wake(LOW)
    assert host.levels[0] > 0


def test_vm_waits_anew_after_memory_was_back() -> None:
    host = Host()
    for _ in range(35):
        host.policy.step(Resized(FIRST, GIB), host.now_s)
        host.wake(LOW)
        host.policy.step(Resized(FIRST, GIB // 2), host.now_s)
    assert host.levels == [0, 4, 1]
    host.wake(Reading(available_mib=401, margin_mib=400))
    host.policy.step(Looked(LOW), host.now_s)
    assert host.levels == [0, 4, 2]


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


def owed(high_bytes: int) -> Host:
    """A host on which a VM of the highest priority has all of its balloon, and so has another."""
    host = Host()
    for vm in PRIORITY:
        host.policy.step(Removed(vm), host.now_s)
    for vm, size in ((LAST, high_bytes), (FIRST, GIB)):
        state = PolicyState(16, None, host.now_s + 30.0)
        host.policy.step(Restored(vm, size, state, 0, terms(vm)), host.now_s)
    return host


def released_after_s(host: Host, seen: Reading) -> float:
    """When the VM of the lowest priority gets its first step back."""
    began_s = host.now_s
    while host.level(FIRST) == 16:
        host.now_s += 30.0
        assert host.now_s < began_s + 10_000
        host.policy.step(Woke(seen), host.now_s)
    return host.now_s - began_s


def test_vm_whose_vmm_says_it_has_terabytes_keeps_nobodys_memory_for_ever() -> None:
    # Its own step needs 2 TiB, which no host has: it is owed 16 TiB until its VMM hangs up.
    plenty = Reading(available_mib=8192, margin_mib=400)
    waited_s = released_after_s(owed(16 << 40), plenty)
    # Twice the time in which all of a balloon is given back, from the first refusal on.
    patience_s = 2 * (60 + 15 * 30)
    assert patience_s < waited_s <= patience_s + 60


def test_vm_waits_anew_for_its_memory_after_there_was_no_room_for_it() -> None:
    host = owed(16 << 40)
    plenty, little = (Reading(available_mib=mib, margin_mib=400) for mib in (8192, 410))
    for _ in range(20):
        host.now_s += 30.0
        host.policy.step(Woke(plenty), host.now_s)
    host.now_s += 30.0
    host.policy.step(Woke(little), host.now_s)
    assert released_after_s(host, plenty) > 2 * (60 + 15 * 30)
