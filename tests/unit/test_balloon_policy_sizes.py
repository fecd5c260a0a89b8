"""The policy when the maximum changes, a balloon is there already, or nothing may grow."""

import pytest

from balloon_daemon.errors import ConfigError
from balloon_daemon.sizing.balloon_policy import (
    ArmTimer,
    AvailableMemoryTimer,
    BalloonPolicy,
    LowMemory,
    LowMemoryTimer,
    PauseLowMemory,
    PolicySettings,
    PolicyState,
    Reading,
    Reason,
    SetTarget,
    Timer,
)
from balloon_daemon.units import GIB, MIB

LOW = Reading(available_mib=399, margin_mib=400)
PLENTY = Reading(available_mib=1 << 20, margin_mib=400)


def policy_of(max_bytes: int = 512 * MIB) -> BalloonPolicy:
    return BalloonPolicy(max_bytes, PolicySettings(), lambda: 0.5)


def press(policy: BalloonPolicy, times: int) -> None:
    for _ in range(times):
        policy.step(LowMemory(LOW), 0.0)
        policy.step(LowMemoryTimer(), 1.0)


# --- resize -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "max_bytes", "level_then", "target_then"),
    [
        # 512 MiB in 16 steps are 32 MiB each; 3 GiB are 192 MiB each.
        (16, 3 * GIB, 2, 384 * MIB),
        (6, 3 * GIB, 1, 192 * MIB),
        (5, 3 * GIB, 0, 0),
        (0, 3 * GIB, 0, 0),
        (16, 1024 * MIB, 8, 512 * MIB),
        # A smaller one: the level stays, and the target falls with it at once.
        (16, 256 * MIB, 16, 256 * MIB),
        (8, 256 * MIB, 8, 128 * MIB),
        (3, 0, 0, 0),
        (0, 0, 0, 0),
    ],
)
def test_resize_asks_for_no_more_and_a_smaller_maximum_for_less_at_once(
    level: int, max_bytes: int, level_then: int, target_then: int
) -> None:
    policy = policy_of()
    press(policy, level)

    step = policy.resize(max_bytes)

    assert step.actions == (SetTarget(target_then, level_then),)
    assert (policy.level, policy.target_bytes) == (level_then, target_then)
    assert step.decision.reason is Reason.RESIZED


def test_resized_policy_reaches_its_new_maximum() -> None:
    policy = policy_of()
    press(policy, 16)
    policy.resize(3 * GIB)
    press(policy, 14)
    assert policy.target_bytes == 3 * GIB


def test_resize_to_nothing_and_back_goes_on_from_nothing() -> None:
    policy = policy_of()
    press(policy, 16)
    policy.resize(0)
    refused = policy.step(LowMemory(LOW), 0.0)
    policy.step(LowMemoryTimer(), 1.0)
    policy.resize(512 * MIB)

    assert refused.decision.reason is Reason.NO_BALLOON
    assert policy.target_bytes == 0
    press(policy, 1)
    assert policy.target_bytes == 32 * MIB


def test_resize_leaves_timers_and_listening_as_they_are() -> None:
    policy = policy_of()
    policy.step(LowMemory(LOW), 0.0)
    before = policy.state()
    policy.resize(GIB)
    assert policy.state() == before._replace(level=0)


@pytest.mark.parametrize("max_bytes", [-4096, 4095])
def test_resize_to_an_impossible_maximum_raises_and_changes_nothing(max_bytes: int) -> None:
    policy = policy_of()
    press(policy, 3)
    with pytest.raises(ConfigError, match="whole pages"):
        policy.resize(max_bytes)
    assert (policy.max_bytes, policy.level) == (512 * MIB, 3)


# --- adopt ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("held", "level", "target"),
    [
        (0, 0, 0),
        (4096, 0, 0),
        (32 * MIB - 4096, 0, 0),
        (32 * MIB, 1, 32 * MIB),
        (511 * MIB, 15, 480 * MIB),
        (512 * MIB, 16, 512 * MIB),
        (4 * GIB, 16, 512 * MIB),
    ],
)
def test_adopt_begins_at_the_highest_level_that_asks_for_no_more(
    held: int, level: int, target: int
) -> None:
    policy = policy_of()

    step = policy.adopt(held, 100.0)

    assert step.actions == (
        SetTarget(target, level),
        ArmTimer(Timer.AVAILABLE_MEMORY, 66.0),
    )
    assert step.decision.reason is Reason.ADOPTED
    assert policy.listening


def test_adopted_balloon_that_nobody_needs_goes_back() -> None:
    policy = policy_of()
    policy.adopt(512 * MIB, 0.0)
    targets = []
    for _ in range(16):
        policy.step(AvailableMemoryTimer(PLENTY), 66.0)
        targets.append(policy.target_bytes)
    assert targets == [k * 32 * MIB for k in range(15, -1, -1)]


def test_adopted_balloon_grows_on_while_memory_is_low() -> None:
    policy = policy_of()
    policy.adopt(256 * MIB, 0.0)
    press(policy, 8)
    assert policy.target_bytes == 512 * MIB


def test_balloon_of_a_vm_that_may_have_none_is_asked_back() -> None:
    policy = policy_of(0)
    assert policy.adopt(256 * MIB, 0.0).actions[0] == SetTarget(0, 0)


# --- held -------------------------------------------------------------------------------------


@pytest.mark.parametrize("why", [Reason.FRUITLESS, Reason.NO_ROOM])
def test_held_takes_no_step_up_and_looks_again_as_ever(why: Reason) -> None:
    policy = policy_of()
    press(policy, 3)
    policy.held = why

    step = policy.step(LowMemory(LOW), 5.0)

    assert step.actions == (
        PauseLowMemory(),
        ArmTimer(Timer.LOW_MEMORY, 1.025),
        ArmTimer(Timer.AVAILABLE_MEMORY, 66.0),
    )
    assert (step.decision.reason, policy.level) == (why, 3)


def test_held_gives_back_all_the_same() -> None:
    policy = policy_of()
    press(policy, 3)
    policy.held = Reason.FRUITLESS
    policy.step(AvailableMemoryTimer(PLENTY), 66.0)
    assert policy.level == 2


def test_held_no_more_goes_on_growing() -> None:
    policy = policy_of()
    policy.held = Reason.NO_ROOM
    press(policy, 3)
    assert policy.level == 0
    policy.held = None
    press(policy, 3)
    assert policy.level == 3


def test_held_at_the_maximum_is_at_the_maximum() -> None:
    policy = policy_of()
    press(policy, 16)
    policy.held = Reason.FRUITLESS
    assert policy.step(LowMemory(LOW), 5.0).decision.reason is Reason.AT_MAXIMUM


def test_held_is_no_part_of_the_state_that_another_process_is_told() -> None:
    # It is found out anew at each low-memory event.
    policy = policy_of()
    press(policy, 1)
    policy.held = Reason.FRUITLESS
    again = BalloonPolicy.restore(policy.state(), 512 * MIB, PolicySettings(), lambda: 0.5)
    assert again.held is None
    assert isinstance(again.state(), PolicyState)
