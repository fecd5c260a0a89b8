"""Other settings for a VM that is governed already: what it is told, and when."""

from dataclasses import replace

import pytest

from balloon_daemon.sizing.balloon_policy import PolicySettings
from balloon_daemon.sizing.decision import Reading, Reason
from balloon_daemon.sizing.host_events import (
    Added,
    Event,
    Halted,
    HostStep,
    Moved,
    Sampled,
    SettingsChanged,
    Target,
    Watch,
    Woke,
)
from balloon_daemon.sizing.host_policy import HostPolicy
from balloon_daemon.sizing.need import Figures
from balloon_daemon.sizing.terms import Terms
from balloon_daemon.sizing.vm_settings import SEED, Profile, VmSettings
from balloon_daemon.units import GIB, MIB, VmId

A, B = VmId(1, "vm1"), VmId(2, "vm2")
LOW = Reading(available_mib=10, margin_mib=400)
PLENTY = Reading(available_mib=1 << 20, margin_mib=400)
STEP = 32 * MIB
"""Of a VM of 1 GiB: half of it in 16 steps."""


class Host:
    """A host's policy without jitter, with VMs of 1 GiB."""

    def __init__(self, *settings: VmSettings) -> None:
        numbers = PolicySettings(
            recheck_jitter_s=0.0, release_after_jitter_s=0.0, release_every_jitter_s=0.0
        )
        self.policy = HostPolicy(numbers, lambda: 0.0, lambda _vm, _level: None)
        self.now_s = 1000.0
        for vm, each in zip((A, B), settings, strict=False):
            self.step(Added(vm, GIB, terms=Terms(each)))

    def step(self, event: Event) -> HostStep:
        return self.policy.step(event, self.now_s)

    def low(self, seconds: int) -> None:
        for _ in range(seconds):
            for target in self.step(Woke(LOW)).targets:
                if self.policy.guard(target.vm) is None:
                    self.policy.note_actual(target.vm, target.target_bytes)
                else:
                    self.step(Moved(target.vm, target.target_bytes))
            self.now_s += 1.0

    def change(self, settings: VmSettings, vm: VmId = A) -> HostStep:
        return self.step(SettingsChanged(vm, settings))


@pytest.mark.parametrize(
    "settings",
    [
        replace(SEED, ceiling_bytes=8 * STEP),
        replace(SEED, ceiling_bytes=4 * STEP),
        replace(SEED, floor_bytes=GIB - 5 * STEP),
        replace(SEED, priority=9),
    ],
)
def test_balloon_that_may_stay_as_it_is_hears_nothing(settings: VmSettings) -> None:
    host = Host(SEED)
    host.low(4)
    state = host.policy.policy(A).state()

    step = host.change(settings)

    assert step.targets == ()
    assert host.policy.target_bytes(A) == 4 * STEP
    # Memory is given back no later than before.
    assert host.policy.policy(A).state()[1:] == state[1:]


def test_balloon_above_its_new_ceiling_shrinks_to_it_at_once() -> None:
    host = Host(SEED)
    host.low(4)

    step = host.change(replace(SEED, ceiling_bytes=3 * STEP))

    assert step.targets == (Target(A, 3 * STEP),)
    (decided,) = step.decisions
    assert (decided.decision.reason, decided.decision.level) == (Reason.LIMITS_CHANGED, 16)


def test_vm_that_is_to_be_left_alone_gets_all_back() -> None:
    host = Host(SEED)
    host.low(4)
    assert host.change(replace(SEED, ceiling_bytes=0)).targets == (Target(A, 0),)
    host.low(4)
    assert host.policy.target_bytes(A) == 0


def test_larger_ceiling_is_used_from_the_next_step_on() -> None:
    host = Host(replace(SEED, ceiling_bytes=8 * STEP))
    host.low(16)
    assert host.policy.target_bytes(A) == 8 * STEP

    assert host.change(SEED).targets == ()
    assert host.policy.policy(A).level == 8
    host.low(1)
    assert host.policy.target_bytes(A) == 9 * STEP


def test_new_priority_decides_who_is_squeezed_next() -> None:
    host = Host(SEED, SEED)
    host.change(replace(SEED, priority=1))
    host.low(1)
    assert (host.policy.target_bytes(A), host.policy.target_bytes(B)) == (0, STEP)
    host.change(SEED)
    host.low(1)
    assert (host.policy.target_bytes(A), host.policy.target_bytes(B)) == (STEP, 2 * STEP)


def test_guest_that_becomes_careful_is_protected_from_then_on() -> None:
    host = Host(SEED)
    host.low(4)

    step = host.change(VmSettings())

    assert step.targets == ()
    assert step.watches == (Watch(A, 1.0),)
    poor = Figures(host.now_s, 100 * MIB, 50 * MIB, 0, 0, 0, 0)
    assert Target(A, 0) in host.step(Sampled(A, poor)).targets


def test_guest_that_is_careful_no_more_is_asked_for_nothing_but_its_balloon() -> None:
    host = Host(VmSettings())
    host.low(2)
    host.step(Sampled(A, Figures(host.now_s, 100 * MIB, 50 * MIB, 0, 0, 0, 0)))
    assert host.policy.target_bytes(A) == 0

    step = host.change(SEED)

    assert (step.targets, step.watches) == ((), (Watch(A, None),))
    assert host.policy.guard(A) is None
    host.low(1)  # A guest in need would have been left alone.
    assert host.policy.target_bytes(A) == STEP


def test_settings_of_a_host_that_ends_change_nothing() -> None:
    host = Host(SEED)
    host.low(4)
    host.step(Halted())
    assert host.change(VmSettings(ceiling_bytes=0, profile=Profile.CAREFUL)).targets == ()
