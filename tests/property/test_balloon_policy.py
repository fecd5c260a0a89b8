"""Both promises of the policy, for any VM and any draw of the jitter, and what never breaks."""

from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import cycle

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from balloon_daemon.errors import StateError
from balloon_daemon.sizing.balloon_policy import (
    ArmTimer,
    AvailableMemoryTimer,
    BalloonPolicy,
    DisarmTimer,
    Event,
    LowMemory,
    LowMemoryTimer,
    NeverLow,
    PauseLowMemory,
    PolicySettings,
    Reading,
    ResumeLowMemory,
    SetTarget,
    Step,
    Timer,
    max_balloon_bytes,
)
from balloon_daemon.units import GIB, MIB
from tests.fakes.clock import FakeClock
from tests.harness.faults import fault

LOW = Reading(available_mib=0, margin_mib=1)
PLENTY = Reading(available_mib=1 << 40, margin_mib=1)
OFF = NeverLow("it was switched off")

ALMOST_ONE = 1 - 2**-53  # the largest draw there is
DRAWS = st.one_of(
    st.just([0.0]),
    st.just([ALMOST_ONE]),
    st.lists(st.floats(0, ALMOST_ONE), min_size=1, max_size=40),
)
VM_MEM = st.integers(0, 1024 * GIB)
BALLOONED_VM_MEM = st.integers(500 * MIB, 1024 * GIB)


class Host:
    """A controller in miniature: does what the policy asks for, on a clock of its own.

    Args:
        draws: The jitter, repeated for ever.
        late: By how much each timer is late, in seconds, repeated for ever.
    """

    def __init__(
        self,
        max_bytes: int,
        draws: list[float],
        late: list[float],
        settings: PolicySettings | None = None,
    ) -> None:
        drawn: Iterator[float] = cycle(draws)
        self.policy = BalloonPolicy(max_bytes, settings or PolicySettings(), lambda: next(drawn))
        self.clock: FakeClock[Timer] = FakeClock()
        self.reading: Reading | NeverLow | None = LOW
        self.listening = True
        self.targets = [0]
        self.last_event_s = self.clock.now_s
        self._late = cycle(late)

    def look(self) -> None:
        """One look at the source, as a poll or a wake-up causes it."""
        if self.listening and isinstance(self.reading, Reading) and self.reading.is_low:
            self.last_event_s = self.clock.now_s
            self._do(self.policy.step(LowMemory(self.reading), self.clock.now_s))

    def run_until(self, done: Callable[[], bool]) -> float:
        """Lets timers fire until ``done``; gives the time then, or infinity if none was left."""
        while not done():
            timer = self.clock.fire_next(next(self._late))
            if timer is None:
                return float("inf")
            event = (
                LowMemoryTimer()
                if timer is Timer.LOW_MEMORY
                else AvailableMemoryTimer(self.reading)
            )
            self._do(self.policy.step(event, self.clock.now_s))
            self.look()
        return self.clock.now_s

    def _do(self, step: Step) -> None:
        for action in step.actions:
            match action:
                case SetTarget(target_bytes, _level):
                    self.targets.append(target_bytes)
                case ArmTimer(timer, delay_s):
                    self.clock.arm(timer, delay_s)
                case DisarmTimer(timer):
                    self.clock.disarm(timer)
                case PauseLowMemory():
                    self.listening = False
                case ResumeLowMemory():
                    self.listening = True


# The promise leaves 16 - 15.75 s for the loop's own lateness, over 15 rechecks: 16 ms each.
@given(BALLOONED_VM_MEM, DRAWS, st.lists(st.floats(0, 0.016), min_size=1, max_size=16))
@example(4 * GIB, [ALMOST_ONE], [0.016])
def test_balloon_under_persistent_low_memory_is_at_maximum_within_16_s(
    vm_mem_bytes: int, draws: list[float], late: list[float]
) -> None:
    host = Host(max_balloon_bytes(vm_mem_bytes), draws, late)
    began_s = host.clock.now_s

    host.look()
    reached_s = host.run_until(lambda: host.targets[-1] == host.policy.max_bytes)

    assert reached_s - began_s <= 16
    assert len(host.targets) == 17
    assert host.targets == sorted(host.targets)


# 540 - 537 s over 16 releases: 187 ms each.
@fault("low-memory notifier switched off (`off` in `margin`), and on again")
@given(
    BALLOONED_VM_MEM,
    DRAWS,
    st.lists(st.floats(0, 0.187), min_size=1, max_size=16),
    st.integers(1, 40),
    st.sampled_from([PLENTY, OFF]),
)
@example(4 * GIB, [ALMOST_ONE], [0.187], 16, PLENTY)
@example(4 * GIB, [ALMOST_ONE], [0.187], 16, OFF)
def test_balloon_when_memory_is_back_or_never_low_is_at_zero_within_9_minutes(
    vm_mem_bytes: int,
    draws: list[float],
    late: list[float],
    events: int,
    reading: Reading | NeverLow,
) -> None:
    host = Host(max_balloon_bytes(vm_mem_bytes), draws, late)
    host.look()
    host.run_until(lambda: host.policy.statistics().low_memory_events == events)
    peak = len(host.targets)

    host.reading = reading
    reached_s = host.run_until(lambda: host.targets[-1] == 0)

    assert reached_s - host.last_event_s <= 9 * 60
    assert host.targets[peak:] == host.targets[: peak - 1][::-1]  # down as it came up
    host.run_until(lambda: not host.clock.deadlines)
    assert host.policy.listening
    assert host.targets[-1] == 0


@given(
    BALLOONED_VM_MEM,
    DRAWS,
    st.builds(
        PolicySettings,
        steps=st.integers(1, 64),
        recheck_s=st.floats(0.01, 10),
        recheck_jitter_s=st.floats(0, 10),
        release_after_s=st.floats(0.01, 100),
        release_after_jitter_s=st.floats(0, 100),
        release_every_s=st.floats(0.01, 100),
        release_every_jitter_s=st.floats(0, 100),
    ),
)
def test_settings_of_any_policy_bound_its_ways_up_and_down(
    vm_mem_bytes: int, draws: list[float], settings: PolicySettings
) -> None:
    # A release before the recheck would step down under way; the bounds are for the other order.
    assume(settings.release_after_s > settings.recheck_s + settings.recheck_jitter_s)
    host = Host(max_balloon_bytes(vm_mem_bytes), draws, [0.0], settings)
    began_s = host.clock.now_s

    host.look()
    up_s = host.run_until(lambda: host.policy.level == settings.steps) - began_s
    host.reading = PLENTY
    down_s = host.run_until(lambda: host.policy.level == 0) - host.last_event_s

    assert up_s <= settings.seconds_to_maximum + 1e-6
    assert down_s <= settings.seconds_to_zero + 1e-6


READINGS = st.builds(
    Reading, available_mib=st.integers(0, 1 << 21), margin_mib=st.integers(0, 1 << 20)
)
EVENTS = st.one_of(
    st.builds(LowMemory, READINGS),
    st.just(LowMemory(LOW)),
    st.just(LowMemoryTimer()),
    st.builds(AvailableMemoryTimer, st.none() | READINGS | st.just(PLENTY) | st.just(OFF)),
)


@given(VM_MEM, DRAWS, st.lists(EVENTS, max_size=60))
def test_any_events_leave_the_invariants_whole(
    vm_mem_bytes: int, draws: list[float], events: list[Event]
) -> None:
    drawn = cycle(draws)
    max_bytes = max_balloon_bytes(vm_mem_bytes)
    policy = BalloonPolicy(max_bytes, PolicySettings(), lambda: next(drawn))
    for now_s, event in enumerate(events):
        before, counted = policy.state(), policy.statistics()
        sent: list[int] = []
        try:
            step = policy.step(event, now_s)
        except StateError:
            assert (policy.state(), policy.statistics()) == (before, counted)
        else:
            sent = [a.target_bytes for a in step.actions if isinstance(a, SetTarget)]
            assert step.decision.level == policy.level
            assert step.decision.level_before == before.level
        after = policy.state()
        assert abs(after.level - before.level) <= 1
        assert sent == [policy.target_bytes] * (after.level != before.level)
        assert 0 <= policy.target_bytes <= max_bytes
        exact = Fraction(max_bytes * after.level, 16)
        assert policy.target_bytes == exact // 4096 * 4096
        assert 0 <= after.level <= (16 if max_bytes else 0)
        assert after.level == 0 or after.release_at_s is not None
        assert policy.listening == (after.recheck_at_s is None)


@given(VM_MEM, st.lists(EVENTS, max_size=60))
def test_target_while_every_reading_is_low_or_unknown_never_falls(
    vm_mem_bytes: int, events: list[Event]
) -> None:
    policy = BalloonPolicy(max_balloon_bytes(vm_mem_bytes), PolicySettings(), lambda: 0.5)
    targets = [0]
    for event in events:
        match event:
            case LowMemory(reading) | AvailableMemoryTimer(Reading() as reading):
                if not reading.is_low:
                    continue
            case AvailableMemoryTimer(NeverLow()):
                continue
        try:
            policy.step(event, 0.0)
        except StateError:
            continue
        targets.append(policy.target_bytes)
    assert targets == sorted(targets)


@given(BALLOONED_VM_MEM, st.lists(EVENTS, max_size=30), st.lists(EVENTS, max_size=30))
def test_restored_policy_goes_on_like_the_one_before(
    vm_mem_bytes: int, first: list[Event], then: list[Event]
) -> None:
    def outcome(policy: BalloonPolicy, event: Event, now_s: float) -> object:
        try:
            return policy.step(event, now_s)
        except StateError as err:
            return str(err)

    max_bytes = max_balloon_bytes(vm_mem_bytes)
    old = BalloonPolicy(max_bytes, PolicySettings(), lambda: 0.25)
    for now_s, event in enumerate(first):
        outcome(old, event, now_s)
    new = BalloonPolicy.restore(old.state(), max_bytes, PolicySettings(), lambda: 0.25)

    assert new.state() == old.state()
    for now_s, event in enumerate(then, start=len(first)):
        assert outcome(new, event, now_s) == outcome(old, event, now_s)
        assert new.state() == old.state()


@given(st.floats(1e-3, 1e4))
def test_faster_settings_keep_the_promises_in_proportion(speed: float) -> None:
    settings = PolicySettings().faster(speed)

    assert settings.seconds_to_maximum == pytest.approx(15.75 / speed)
    assert settings.seconds_to_zero == pytest.approx(537 / speed)
