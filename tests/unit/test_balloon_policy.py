"""The figures of crosvm's balloon policy, and each transition once, at its thresholds."""

from typing import Any

import pytest

from balloon_daemon.errors import ConfigError, StateError
from balloon_daemon.sizing.balloon_policy import (
    ArmTimer,
    AvailableMemoryTimer,
    BalloonPolicy,
    Decision,
    DisarmTimer,
    Event,
    LowMemory,
    LowMemoryTimer,
    NeverLow,
    PauseLowMemory,
    PolicySettings,
    PolicyState,
    PolicyStatistics,
    Reading,
    Reason,
    ResumeLowMemory,
    SetTarget,
    Timer,
    max_balloon_bytes,
)
from balloon_daemon.units import GIB, MIB

MARGIN_MIB = 400
LOW = Reading(available_mib=MARGIN_MIB - 1, margin_mib=MARGIN_MIB)
PLENTY = Reading(available_mib=8192, margin_mib=MARGIN_MIB)


def policy_of(vm_mem_bytes: int = 4 * GIB, jitter: float = 0.5) -> BalloonPolicy:
    return BalloonPolicy(max_balloon_bytes(vm_mem_bytes), PolicySettings(), lambda: jitter)


def press(policy: BalloonPolicy, times: int) -> list[int]:
    """Low-memory events with their rechecks; gives the target after each."""
    targets = []
    for _ in range(times):
        policy.step(LowMemory(LOW), 0.0)
        policy.step(LowMemoryTimer(), 1.0)
        targets.append(policy.target_bytes)
    return targets


@pytest.mark.parametrize(
    ("vm_mem_bytes", "max_bytes"),
    [
        (4 * GIB, 3 * GIB),
        (1536 * MIB + 1, 512 * MIB),  # more than 1.5 GiB: 512 MiB and a byte, in whole pages
        (1536 * MIB + 4096, 512 * MIB + 4096),
        (1536 * MIB, 768 * MIB),
        (500 * MIB, 250 * MIB),
        (500 * MIB - 1, 0),
        (499 * MIB, 0),
        (0, 0),
    ],
)
def test_maximum_of_vm_size_is_the_seeds(vm_mem_bytes: int, max_bytes: int) -> None:
    assert max_balloon_bytes(vm_mem_bytes) == max_bytes


def test_low_memory_sixteen_times_takes_3_gib_of_4_in_steps_of_192_mib() -> None:
    policy = policy_of(4 * GIB)

    targets = press(policy, 16)

    assert targets == [k * 192 * MIB for k in range(1, 17)]
    assert targets[-1] == 3 * GIB


def test_levels_of_uneven_maximum_are_whole_pages_and_the_last_is_the_maximum() -> None:
    # 17 pages in 16 steps: 1.0625 pages each, so only the last step shows the 17th.
    policy = BalloonPolicy(17 * 4096, PolicySettings(), lambda: 0.0)

    targets = press(policy, 16)

    assert targets == [k * 4096 for k in range(1, 16)] + [17 * 4096]


def test_low_memory_listening_steps_up_pauses_and_arms_both_timers() -> None:
    policy = policy_of()

    step = policy.step(LowMemory(LOW), 5.0)

    assert step.actions == (
        SetTarget(192 * MIB, level=1),
        PauseLowMemory(),
        ArmTimer(Timer.LOW_MEMORY, 1.025),
        ArmTimer(Timer.AVAILABLE_MEMORY, 66.0),
    )
    assert step.decision.reason is Reason.LOW_MEMORY
    assert not policy.listening
    assert policy.state() == PolicyState(level=1, recheck_at_s=6.025, release_at_s=71.0)


def test_low_memory_at_maximum_takes_no_step_but_arms_all_the_same() -> None:
    policy = policy_of()
    press(policy, 16)

    step = policy.step(LowMemory(LOW), 100.0)

    assert step.actions == (
        PauseLowMemory(),
        ArmTimer(Timer.LOW_MEMORY, 1.025),
        ArmTimer(Timer.AVAILABLE_MEMORY, 66.0),
    )
    assert step.decision.reason is Reason.AT_MAXIMUM
    assert policy.level == 16


def test_low_memory_of_small_vm_takes_no_step() -> None:
    policy = policy_of(499 * MIB)

    step = policy.step(LowMemory(LOW), 0.0)

    assert not any(isinstance(action, SetTarget) for action in step.actions)
    assert step.decision.reason is Reason.NO_BALLOON
    assert (policy.level, policy.target_bytes) == (0, 0)


def test_low_memory_again_arms_the_release_from_its_first_delay() -> None:
    policy = policy_of()
    press(policy, 2)
    policy.step(AvailableMemoryTimer(PLENTY), 66.0)  # now in its 30 s rhythm

    step = policy.step(LowMemory(LOW), 70.0)

    assert ArmTimer(Timer.AVAILABLE_MEMORY, 66.0) in step.actions


def test_recheck_listens_again_and_keeps_the_release() -> None:
    policy = policy_of()
    policy.step(LowMemory(LOW), 0.0)

    step = policy.step(LowMemoryTimer(), 1.025)

    assert step.actions == (ResumeLowMemory(),)
    assert step.decision.reason is Reason.RECHECK
    assert policy.listening
    assert policy.state().release_at_s == 66.0


@pytest.mark.parametrize(
    ("vm_mem_bytes", "needed_above_margin_mib"),
    [
        (4 * GIB, 384),  # 2 × 192 MiB
        (500 * MIB, 30),  # 2 × 15.625 MiB, rounded down before it is doubled
    ],
)
def test_release_steps_down_from_two_increments_above_margin(
    vm_mem_bytes: int, needed_above_margin_mib: int
) -> None:
    needed_mib = MARGIN_MIB + needed_above_margin_mib
    policy = policy_of(vm_mem_bytes)
    press(policy, 3)

    short = policy.step(AvailableMemoryTimer(Reading(needed_mib - 1, MARGIN_MIB)), 66.0)
    enough = policy.step(AvailableMemoryTimer(Reading(needed_mib, MARGIN_MIB)), 96.5)

    assert short.actions == (ArmTimer(Timer.AVAILABLE_MEMORY, 30.5),)
    assert short.decision.reason is Reason.NOT_ENOUGH_BACK
    assert short.decision.needed_mib == needed_mib
    assert enough.actions == (
        SetTarget(policy.max_bytes * 2 // 16 // 4096 * 4096, level=2),
        ArmTimer(Timer.AVAILABLE_MEMORY, 30.5),
    )
    assert enough.decision.reason is Reason.MEMORY_BACK


def test_release_of_unknown_memory_takes_no_step_and_tries_again() -> None:
    policy = policy_of()
    press(policy, 1)

    step = policy.step(AvailableMemoryTimer(None), 66.0)

    assert step.actions == (ArmTimer(Timer.AVAILABLE_MEMORY, 30.5),)
    assert step.decision.reason is Reason.UNKNOWN
    assert policy.level == 1


def test_release_of_a_source_that_is_switched_off_steps_down_to_zero() -> None:
    policy = policy_of()
    press(policy, 2)
    off = AvailableMemoryTimer(NeverLow("margin says off"))

    steps = [policy.step(off, 66.0), policy.step(off, 96.5), policy.step(off, 127.0)]

    assert [step.actions for step in steps] == [
        (SetTarget(192 * MIB, level=1), ArmTimer(Timer.AVAILABLE_MEMORY, 30.5)),
        (SetTarget(0, level=0), ArmTimer(Timer.AVAILABLE_MEMORY, 30.5)),
        (DisarmTimer(Timer.AVAILABLE_MEMORY),),
    ]
    assert [step.decision.reason for step in steps] == [
        Reason.SWITCHED_OFF,
        Reason.SWITCHED_OFF,
        Reason.ALL_RETURNED,
    ]
    assert policy.statistics().steps_down == 2


def test_release_at_level_zero_disarms() -> None:
    policy = policy_of()
    press(policy, 1)
    last = policy.step(AvailableMemoryTimer(PLENTY), 66.0)

    step = policy.step(AvailableMemoryTimer(None), 96.5)

    assert SetTarget(0, level=0) in last.actions
    assert step.actions == (DisarmTimer(Timer.AVAILABLE_MEMORY),)
    assert step.decision.reason is Reason.ALL_RETURNED
    assert policy.state() == PolicyState()


def test_jitter_is_drawn_once_per_arming() -> None:
    draws = iter([0.0, 0.25, 0.5])
    policy = BalloonPolicy(3 * GIB, PolicySettings(), lambda: next(draws))

    low = policy.step(LowMemory(LOW), 0.0)
    release = policy.step(AvailableMemoryTimer(None), 63.0)

    assert low.actions[2:] == (
        ArmTimer(Timer.LOW_MEMORY, 1.0),
        ArmTimer(Timer.AVAILABLE_MEMORY, 63.0),
    )
    assert release.actions == (ArmTimer(Timer.AVAILABLE_MEMORY, 30.5),)


@pytest.mark.parametrize(
    ("pressed", "event"),
    [
        (False, LowMemoryTimer()),
        (False, AvailableMemoryTimer(PLENTY)),
        (False, LowMemory(Reading(MARGIN_MIB, MARGIN_MIB))),  # at the margin is not below it
        (True, LowMemory(LOW)),
    ],
)
def test_illegal_event_raises_and_changes_nothing(pressed: bool, event: Event) -> None:
    policy = policy_of()
    for first in [LowMemory(LOW)] * pressed:
        policy.step(first, 0.0)
    before = (policy.state(), policy.statistics())

    with pytest.raises(StateError):
        policy.step(event, 0.5)

    assert (policy.state(), policy.statistics()) == before


def test_statistics_count_each_kind_of_step() -> None:
    policy = policy_of()
    press(policy, 17)
    for reading in (LOW, None, PLENTY):
        policy.step(AvailableMemoryTimer(reading), 100.0)

    assert policy.statistics() == PolicyStatistics(
        low_memory_events=17, steps_up=16, steps_down=1, releases_refused=1, releases_unknown=1
    )


STEP_BYTES = 192 * MIB


@pytest.mark.parametrize(
    ("events", "decision"),
    [
        (
            [LowMemory(LOW)],
            Decision(Reason.LOW_MEMORY, 0, 1, 16, STEP_BYTES, LOW),
        ),
        (
            [LowMemory(LOW), AvailableMemoryTimer(Reading(783, 400))],
            Decision(Reason.NOT_ENOUGH_BACK, 1, 1, 16, STEP_BYTES, Reading(783, 400), 784),
        ),
        (
            [LowMemory(LOW), AvailableMemoryTimer(Reading(1784, 400))],
            Decision(Reason.MEMORY_BACK, 1, 0, 16, 0, Reading(1784, 400), 784),
        ),
        (
            [LowMemory(LOW), AvailableMemoryTimer(None)],
            Decision(Reason.UNKNOWN, 1, 1, 16, STEP_BYTES),
        ),
        (
            [LowMemory(LOW), AvailableMemoryTimer(NeverLow("margin says off"))],
            Decision(Reason.SWITCHED_OFF, 1, 0, 16, 0),
        ),
    ],
)
def test_decision_holds_what_was_seen_decided_and_why(
    events: list[Event], decision: Decision
) -> None:
    policy = policy_of()
    assert [policy.step(event, 0.0).decision for event in events][-1] == decision


def test_restore_resumes_with_target_and_what_is_left_of_the_timers() -> None:
    old = policy_of()
    old.step(LowMemory(LOW), 10.0)  # recheck at 11.025, release at 76
    new = BalloonPolicy.restore(old.state(), 3 * GIB, PolicySettings(), lambda: 0.0)

    step = new.resume(20.0)

    assert step.actions == (
        SetTarget(192 * MIB, level=1),
        PauseLowMemory(),
        ArmTimer(Timer.LOW_MEMORY, 0.0),
        ArmTimer(Timer.AVAILABLE_MEMORY, 56.0),
    )
    assert step.decision.reason is Reason.RESTORED


def test_restore_listens_last_for_that_may_arm_the_timers_anew() -> None:
    state = PolicyState(level=1, release_at_s=3.0)
    policy = BalloonPolicy.restore(state, 3 * GIB, PolicySettings(), lambda: 0.0)

    assert policy.resume(1.0).actions == (
        SetTarget(192 * MIB, level=1),
        ArmTimer(Timer.AVAILABLE_MEMORY, 2.0),
        ResumeLowMemory(),
    )


def test_restore_of_idle_policy_listens() -> None:
    policy = BalloonPolicy.restore(PolicyState(), 3 * GIB, PolicySettings(), lambda: 0.0)

    assert policy.resume(0.0).actions == (SetTarget(0, level=0), ResumeLowMemory())


def test_restore_after_the_clock_began_anew_waits_no_longer_than_a_fresh_arming() -> None:
    state = PolicyState(level=1, recheck_at_s=9e6, release_at_s=9e6)
    policy = BalloonPolicy.restore(state, 3 * GIB, PolicySettings(), lambda: 0.0)

    step = policy.resume(1.0)

    assert step.actions[2:] == (
        ArmTimer(Timer.LOW_MEMORY, 1.05),
        ArmTimer(Timer.AVAILABLE_MEMORY, 72.0),
    )


@pytest.mark.parametrize(
    ("state", "max_bytes"),
    [
        (PolicyState(level=17, release_at_s=1.0), 3 * GIB),
        (PolicyState(level=-1, release_at_s=1.0), 3 * GIB),
        (PolicyState(level=1), 3 * GIB),  # nothing would ever release it
        (PolicyState(level=1, release_at_s=1.0), 0),
        (PolicyState(recheck_at_s=float("nan")), 3 * GIB),
    ],
)
def test_restore_of_impossible_state_raises(state: PolicyState, max_bytes: int) -> None:
    with pytest.raises(StateError):
        BalloonPolicy.restore(state, max_bytes, PolicySettings(), lambda: 0.0)


@pytest.mark.parametrize("max_bytes", [-4096, 4095])
def test_policy_of_impossible_maximum_raises(max_bytes: int) -> None:
    with pytest.raises(ConfigError, match="whole pages"):
        BalloonPolicy(max_bytes, PolicySettings(), lambda: 0.0)


def test_settings_default_to_the_seeds_promises() -> None:
    settings = PolicySettings()

    assert settings.seconds_to_maximum == pytest.approx(15.75)
    assert settings.seconds_to_zero == pytest.approx(537)


def test_settings_faster_divides_every_time_and_keeps_the_steps() -> None:
    assert PolicySettings().faster(10) == PolicySettings(
        steps=16,
        recheck_s=0.1,
        recheck_jitter_s=0.005,
        release_after_s=6.0,
        release_after_jitter_s=1.2,
        release_every_s=3.0,
        release_every_jitter_s=0.1,
    )


@pytest.mark.parametrize("speed", [0, -1, float("nan"), float("inf")])
def test_settings_of_impossible_speed_raise(speed: float) -> None:
    with pytest.raises(ConfigError, match="speed"):
        PolicySettings().faster(speed)


def test_settings_so_slow_that_no_number_holds_raise() -> None:
    with pytest.raises(ConfigError, match="release_after_s is inf"):
        PolicySettings(release_after_s=1e308).faster(0.1)


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize(
    "name",
    [
        "recheck_s",
        "recheck_jitter_s",
        "release_after_s",
        "release_after_jitter_s",
        "release_every_s",
        "release_every_jitter_s",
    ],
)
def test_settings_with_impossible_time_raise_and_name_it(name: str, seconds: float) -> None:
    setting: dict[str, Any] = {name: seconds}
    with pytest.raises(ConfigError, match=f"^{name} is"):
        PolicySettings(**setting)


def test_settings_without_delay_raise_but_without_jitter_do_not() -> None:
    PolicySettings(recheck_jitter_s=0.0)
    with pytest.raises(ConfigError, match=r"recheck_s is 0\.0; it must be more than 0 seconds"):
        PolicySettings(recheck_s=0.0)


@pytest.mark.parametrize("steps", [0, 1025])
def test_settings_with_impossible_steps_raise(steps: int) -> None:
    with pytest.raises(ConfigError, match="steps is"):
        PolicySettings(steps=steps)
