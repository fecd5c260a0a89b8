"""With one VM the host's policy decides as a governor of that VM alone, event by event."""

from collections.abc import Callable, Iterator
from itertools import cycle
from typing import NamedTuple

from hypothesis import example, given
from hypothesis import strategies as st

from balloon_daemon.sizing.balloon_policy import (
    Action,
    ArmTimer,
    AvailableMemoryTimer,
    BalloonPolicy,
    DisarmTimer,
    LowMemory,
    LowMemoryTimer,
    PauseLowMemory,
    PolicySettings,
    PolicyState,
    ResumeLowMemory,
    SetTarget,
    Step,
    Timer,
    max_balloon_bytes,
)
from balloon_daemon.sizing.decision import Decision, NeverLow, Reading, Reason
from balloon_daemon.sizing.host_events import (
    Added,
    HostStep,
    Looked,
    Removed,
    Resized,
    Restored,
    Seen,
    Woke,
)
from balloon_daemon.sizing.host_policy import HostPolicy
from balloon_daemon.units import GIB, MIB, VmId

VM = VmId(1, "vm1")
POLL_S = 1.0
QUIET = {Reason.AT_MAXIMUM, Reason.NO_BALLOON, Reason.FRUITLESS, Reason.NO_ROOM}


class Heard(NamedTuple):
    """A decision, and whether it repeats the last one."""

    decision: Decision
    repeated: bool


class AloneGovernor:
    """The reference: one VM with timers, a listening and readings of its own.

    This is the governor that balloond had for each VM, without asyncio.
    """

    def __init__(
        self, settings: PolicySettings, draw: Callable[[], float], world: "World"
    ) -> None:
        self._settings = settings
        self._draw = draw
        self._world = world
        self.policy: BalloonPolicy
        self.timers: dict[Timer, float] = {}
        self.listening = False
        self.targets: list[int] = []
        self.heard: list[Heard] = []
        self._last_reason: Reason | None = None
        self._moved_at, self._moved_to, self._most = float("-inf"), 0, 0

    def start(self, vm_mem_bytes: int, balloon_bytes: int) -> None:
        self.policy = BalloonPolicy(max_balloon_bytes(vm_mem_bytes), self._settings, self._draw)
        if balloon_bytes:
            self._take(self.policy.adopt(balloon_bytes, self._world.now_s))
        else:
            self.targets.append(0)
        self.listening = True
        self.look()

    def restore(self, vm_mem_bytes: int, state: PolicyState) -> None:
        max_bytes = max_balloon_bytes(vm_mem_bytes)
        self.policy = BalloonPolicy.restore(state, max_bytes, self._settings, self._draw)
        self._take(self.policy.resume(self._world.now_s))

    def resize(self, vm_mem_bytes: int) -> None:
        max_bytes = max_balloon_bytes(vm_mem_bytes)
        if max_bytes != self.policy.max_bytes:
            self._take(self.policy.resize(max_bytes))

    def look(self) -> None:
        seen = self._world.seen
        if self.listening and isinstance(seen, Reading) and seen.is_low:
            self.policy.held = self._world.objection
            self._take(self.policy.step(LowMemory(seen), self._world.now_s))
            self._tell_if_stopped()

    def fire_due(self) -> None:
        """What is due in the order in which it is, as a loop that comes late does it."""
        while due := [t for t in Timer if self.timers.get(t, float("inf")) <= self._world.now_s]:
            timer = min(due, key=lambda timer: self.timers[timer])
            del self.timers[timer]
            event = (
                LowMemoryTimer()
                if timer is Timer.LOW_MEMORY
                else AvailableMemoryTimer(self._world.seen)
            )
            self._take(self.policy.step(event, self._world.now_s))

    def _take(self, step: Step) -> None:
        for action in step.actions:
            if isinstance(action, SetTarget):
                self.targets.append(action.target_bytes)
                self._moved_at, self._most = self._world.now_s, self._world.actual_bytes
        reason = step.decision.reason
        self.heard.append(Heard(step.decision, reason in QUIET and reason is self._last_reason))
        if reason is not Reason.RECHECK:
            self._last_reason = reason
        for action in step.actions:
            self._act(action)

    def _act(self, action: Action) -> None:
        match action:
            case ArmTimer(timer, delay_s):
                self.timers[timer] = self._world.now_s + delay_s
            case DisarmTimer(timer):
                self.timers.pop(timer, None)
            case PauseLowMemory():
                self.listening = False
            case ResumeLowMemory():
                self.listening = True
                self.look()

    def _tell_if_stopped(self) -> None:
        now, actual = self._world.now_s, self._world.actual_bytes
        if actual != self._moved_to:
            self._moved_at, self._moved_to = now, actual
            self._most = max(self._most, actual)
        short = self._most <= actual < self.policy.target_bytes
        if short and now - self._moved_at >= self._settings.release_every_s:
            self._moved_at = now
            self.targets.append(self.policy.target_bytes)


class World:
    """A clock, what the source says, what the guest has given, and what speaks against more."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.seen: Seen = None
        self.actual_bytes = 0
        self.objection: Reason | None = None


class Pair:
    """Both deciders in one world, each with the same draws; compares all that they say."""

    def __init__(self, settings: PolicySettings, draws: list[float]) -> None:
        self.world = World()
        ours, theirs = cycle(draws), cycle(draws)
        self.alone = AloneGovernor(settings, lambda: next(theirs), self.world)
        self.host = HostPolicy(settings, lambda: next(ours), lambda _vm, _level: self.objection)
        self.targets: list[int] = []
        self.heard: list[Heard] = []
        self.wake_at_s: float | None = None
        self.listen = False

    @property
    def objection(self) -> Reason | None:
        return self.world.objection

    def take(self, step: HostStep) -> None:
        assert all(target.vm == VM for target in step.targets)
        self.targets += [target.target_bytes for target in step.targets]
        self.heard += [Heard(decided.decision, decided.repeated) for decided in step.decisions]
        self.wake_at_s, self.listen = step.wake_at_s, step.listen

    def step(self, event: Added | Restored | Resized | Looked | Woke) -> None:
        self.take(self.host.step(event, self.world.now_s))

    def wake_if_due(self) -> None:
        while self.wake_at_s is not None and self.wake_at_s <= self.world.now_s:
            self.step(Woke(self.world.seen))

    def compare(self) -> None:
        assert self.heard == self.alone.heard
        assert self.targets == self.alone.targets
        assert self.listen == self.alone.listening
        assert self.host.policy(VM).state() == self.alone.policy.state()
        assert self.wake_at_s == min(self.alone.timers.values(), default=None)

    def live(self, seconds: float, late: Iterator[float]) -> None:
        """Lets time go by: deadlines as they come, each late by some time, and polls."""
        end_s = self.world.now_s + seconds
        poll_s = self.world.now_s + POLL_S
        while True:
            due_s = min([poll_s, *self.alone.timers.values()])
            if due_s > end_s:
                break
            self.world.now_s = max(self.world.now_s, due_s + next(late))
            self.alone.fire_due()
            self.wake_if_due()
            self.compare()
            if poll_s <= self.world.now_s:
                poll_s = self.world.now_s + POLL_S
                self.alone.look()
                if self.listen:
                    self.step(Looked(self.world.seen))
                self.compare()
        self.world.now_s = max(self.world.now_s, end_s)


SIZES = st.one_of(
    st.integers(0, 64 * GIB), st.sampled_from([0, 400 * MIB, 512 * MIB, GIB, 4 * GIB])
)
LOW = Reading(10, 400)
READINGS = st.one_of(
    st.none(),
    st.just(NeverLow("it was switched off")),
    st.just(LOW),
    st.just(Reading(1 << 20, 400)),
    st.builds(Reading, st.integers(0, 4000), st.integers(0, 4000)),
)
OBJECTIONS = st.sampled_from([None, None, Reason.FRUITLESS, Reason.NO_ROOM])
DRAWS = st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=8)
LATE = st.lists(st.floats(0, 40), min_size=1, max_size=8)
STATES = st.builds(
    PolicyState,
    st.integers(0, 16),
    st.none() | st.floats(900, 1100),
    st.floats(900, 1100),
)


class Act(NamedTuple):
    """Something in the world changes, and then time goes by."""

    seconds: float
    seen: Seen | None = None
    actual_bytes: int | None = None
    vm_mem_bytes: int | None = None
    objection: Reason | None = None


ACTS = st.lists(
    st.builds(
        Act,
        st.floats(0, 90),
        READINGS,
        st.none() | st.integers(0, GIB),
        st.none() | SIZES,
        OBJECTIONS,
    ),
    max_size=12,
)


def play(pair: Pair, acts: list[Act], late: list[float]) -> None:
    lateness = cycle(late)
    for act in acts:
        pair.world.seen, pair.world.objection = act.seen, act.objection
        if act.actual_bytes is not None:
            pair.world.actual_bytes = act.actual_bytes
            pair.host.note_actual(VM, act.actual_bytes)
        if act.vm_mem_bytes is not None:
            pair.alone.resize(act.vm_mem_bytes)
            pair.step(Resized(VM, act.vm_mem_bytes))
            pair.compare()
        pair.live(act.seconds, lateness)


@given(SIZES, st.sampled_from([0, 0, 100 * MIB, 4 * GIB]), DRAWS, ACTS, LATE, READINGS)
@example(GIB, 0, [0.0], [Act(120.0, LOW)], [0.0], LOW)
@example(GIB, 0, [0.0], [Act(20.0, LOW), Act(600.0, Reading(9000, 400))], [0.0], None)
@example(
    GIB,
    0,
    [0.0],
    # Its balloon has been larger since it was told: it takes pages back, and is not told again.
    [Act(20.0, LOW), Act(5.0, LOW, 400 * MIB), Act(90.0, LOW, 300 * MIB)],
    [0.0],
    LOW,
)
@example(4 * GIB, 0, [0.5], [Act(80.0, LOW), Act(80.0, LOW), Act(80.0, LOW)], [35.0], LOW)
def test_one_vm_is_decided_as_by_a_governor_of_its_own(
    vm_mem_bytes: int,
    balloon_bytes: int,
    draws: list[float],
    acts: list[Act],
    late: list[float],
    seen: Seen,
) -> None:
    pair = Pair(PolicySettings(), draws)
    pair.world.seen, pair.world.actual_bytes = seen, balloon_bytes
    pair.alone.start(vm_mem_bytes, balloon_bytes)
    pair.step(Added(VM, vm_mem_bytes, balloon_bytes))
    pair.wake_if_due()
    pair.compare()
    play(pair, acts, late)


@given(SIZES.filter(max_balloon_bytes), STATES, DRAWS, ACTS, LATE, READINGS)
@example(GIB, PolicyState(3, None, 1010.0), [0.0], [Act(30.0, LOW)], [0.0], LOW)
@example(GIB, PolicyState(3, 990.0, 990.0), [0.0], [Act(30.0, LOW)], [0.0], LOW)
def test_one_restored_vm_is_decided_as_by_a_governor_of_its_own(
    vm_mem_bytes: int,
    state: PolicyState,
    draws: list[float],
    acts: list[Act],
    late: list[float],
    seen: Seen,
) -> None:
    pair = Pair(PolicySettings(), draws)
    pair.world.seen, pair.world.actual_bytes = seen, 77 * MIB
    pair.alone.restore(vm_mem_bytes, state)
    pair.alone.fire_due()
    pair.step(Restored(VM, vm_mem_bytes, state, 77 * MIB))
    pair.wake_if_due()
    pair.compare()
    play(pair, acts, late)


VMS = [VmId(number, f"vm{number}") for number in range(1, 6)]


@given(
    st.lists(st.tuples(st.sampled_from(VMS), st.floats(0, 3), READINGS), max_size=60),
    DRAWS,
)
def test_many_vms_share_one_reading_and_never_raise_at_what_is_not_low(
    acts: list[tuple[VmId, float, Seen]], draws: list[float]
) -> None:
    drawn = cycle(draws)
    host = HostPolicy(PolicySettings(), lambda: next(drawn), lambda _vm, _level: None)
    now_s, levels = 1000.0, dict.fromkeys(VMS, 0)
    for vm, seconds, seen in acts:
        now_s += seconds
        is_low = isinstance(seen, Reading) and seen.is_low
        steps = [host.step(Removed(vm) if host.governs(vm) else Added(vm, 4 * GIB), now_s)]
        if not host.governs(vm):
            levels[vm] = 0
        steps.append(host.step(Woke(seen), now_s))
        for step in steps:
            for decided in step.decisions:
                grown = decided.decision.level > levels[decided.vm]
                assert not grown or is_low
                assert decided.decision.reading in (seen, None)
                levels[decided.vm] = decided.decision.level
            assert {target.vm for target in step.targets} <= {v for v in VMS if host.governs(v)}
        # All deadlines that are past have fired, and whoever listens to what is low was told.
        wake_at_s = steps[-1].wake_at_s
        assert wake_at_s is None or wake_at_s > now_s
        assert not (steps[-1].listen and is_low and steps[-1].decisions)
