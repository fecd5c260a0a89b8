"""How big each balloon should be: ChromeOS's balloon policy as a pure state machine.

Runs in the controller, one instance per VM; events and a clock reading in, actions out. The class
does no I/O, reads no clock, draws no random number and logs nothing: all of these are arguments.

Theory of operation
    The state is a *level* of 0…``steps`` and two deadlines. Level ``k`` is a target of
    ``max_bytes × k / steps``, rounded down to whole pages.

    =============  ====================  ======================================================
    state          event                 what happens
    =============  ====================  ======================================================
    listening      LowMemory             one level up (not past the top); stop listening; arm
                                         the recheck; arm the release from the start
    not listening  LowMemoryTimer        listen again and look at once: still low is a new event
    release armed  AvailableMemoryTimer  level 0: disarm. Else re-arm, and one level down if
                                         there is room for it or the source is switched off
    any            ``resize``            the maximum changes; the level becomes one whose target
                                         is not above the target before
    =============  ====================  ======================================================

    While ``held`` gives a reason, LowMemory causes no step up; everything else stays the same.

    "Listening" is the same as "no recheck pending"; a level above 0 always has a release pending.
    **An illegal event raises StateError and changes nothing**: any other event, and a LowMemory
    whose reading is not low. The policy does not know whether the device runs: targets are
    absolute, so the controller repeats the target to a new device.

Source:
    crosvm, "balloon: Implement device policy" (2018), with two promises: the maximum within 16 s
    of the first event while memory stays low, and zero within 9 minutes of the last event once
    memory is back. Where crosvm's jitter would break a promise, a smaller jitter replaces it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import Self, assert_never

from balloon_daemon.errors import ConfigError, StateError
from balloon_daemon.fact import fact
from balloon_daemon.named_tuple import NamedTuple

# ``X as X`` exports these names from this module too, so that a caller needs only one import: the
# events of this module contain readings, and the steps contain decisions.
from balloon_daemon.sizing.decision import Decision as Decision
from balloon_daemon.sizing.decision import NeverLow as NeverLow
from balloon_daemon.sizing.decision import PolicyStatistics as PolicyStatistics
from balloon_daemon.sizing.decision import Reading as Reading
from balloon_daemon.sizing.decision import Reason as Reason
from balloon_daemon.units import GIB, MIB, PAGE_SIZE

MAX_STEPS = 1024
"""With more steps a VM of 2 GiB would have increments of less than 1 MiB."""


def max_balloon_bytes(vm_mem_bytes: int) -> int:
    """The largest balloon of a VM of this size.

    Returns:
        Bytes, in whole 4 KiB pages: all but 1 GiB of a VM of more than 1.5 GiB, half of a VM of at
        least 500 MiB, nothing of a smaller VM.

    Source: crosvm's device policy, whose GB and MB are binary.
    """
    if vm_mem_bytes > GIB + 512 * MIB:
        limit = vm_mem_bytes - GIB
    elif vm_mem_bytes >= 500 * MIB:
        limit = vm_mem_bytes // 2
    else:
        limit = 0
    return limit // PAGE_SIZE * PAGE_SIZE


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """The policy's numbers: a count of steps, and times in seconds; the defaults are crosvm's.

    Each jitter is the width of a uniform draw that is added to its time, so that the VMs of a host
    do not change together.

    Raises:
        ConfigError: a number with which no policy can work.
    """

    steps: int = 16
    recheck_s: float = 1.0
    recheck_jitter_s: float = 0.05
    release_after_s: float = 60.0
    release_after_jitter_s: float = 12.0
    release_every_s: float = 30.0
    release_every_jitter_s: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= MAX_STEPS:
            raise ConfigError(f"steps is {self.steps}; it must be from 1 to {MAX_STEPS}")
        for field in fields(self)[1:]:
            seconds = getattr(self, field.name)
            jitter = field.name.endswith("_jitter_s")
            if not math.isfinite(seconds) or seconds < 0 or (seconds == 0 and not jitter):
                allowed = "0 or more" if jitter else "more than 0"
                raise ConfigError(f"{field.name} is {seconds}; it must be {allowed} seconds")

    def faster(self, speed: float) -> "PolicySettings":
        """The same policy ``speed`` times as fast: every time divided by it.

        Raises:
            ConfigError: the speed is not a number above 0, or no time is left at that speed.
        """
        if not math.isfinite(speed) or speed <= 0:
            raise ConfigError(f"the policy's speed is {speed}; it must be more than 0")
        times = {f.name: getattr(self, f.name) / speed for f in fields(self)[1:]}
        return replace(self, **times)

    @property
    def seconds_to_maximum(self) -> float:
        """The longest time from the first low-memory event to the maximum, in lasting pressure."""
        return (self.steps - 1) * (self.recheck_s + self.recheck_jitter_s)

    @property
    def seconds_to_zero(self) -> float:
        """The longest time from the last low-memory event to zero when memory is back at once."""
        first = self.release_after_s + self.release_after_jitter_s
        return first + (self.steps - 1) * (self.release_every_s + self.release_every_jitter_s)


class Timer(Enum):
    """The policy's two timers; arming one that runs moves its deadline."""

    LOW_MEMORY = "recheck"
    AVAILABLE_MEMORY = "release"


class LowMemory(NamedTuple):
    """The low-memory source reports that the host is low on memory, while the policy listens."""

    reading: Reading


# ``fact``: a plain named tuple without fields is false and equals every other empty tuple.
@fact
class LowMemoryTimer(NamedTuple):
    """The recheck timer fired."""


class AvailableMemoryTimer(NamedTuple):
    """The release timer fired; ``reading`` is the low-memory source's now, None: unknown."""

    reading: Reading | NeverLow | None


Event = LowMemory | LowMemoryTimer | AvailableMemoryTimer


class SetTarget(NamedTuple):
    """Send this absolute target, in bytes of balloon, to the guest."""

    target_bytes: int
    level: int


class ArmTimer(NamedTuple):
    """Let the timer fire once after this delay, whether or not it is armed already."""

    timer: Timer
    delay_s: float


class DisarmTimer(NamedTuple):
    """Stop the timer."""

    timer: Timer


@fact
class PauseLowMemory(NamedTuple):
    """Stop listening to the low-memory source: send no LowMemory until ResumeLowMemory."""


@fact
class ResumeLowMemory(NamedTuple):
    """Listen again, and read the source at once: a step up that waits for the next poll could make
    the balloon reach its maximum later than the promised 16 s."""


Action = SetTarget | ArmTimer | DisarmTimer | PauseLowMemory | ResumeLowMemory


class Step(NamedTuple):
    """A step's actions, in the order in which to perform them, and the decision behind them."""

    actions: tuple[Action, ...]
    decision: Decision


class PolicyState(NamedTuple):
    """The state with which another process can go on: the level and both deadlines.

    Attributes:
        recheck_at_s: When to listen again, on the clock given to ``step``; None: listening.
        release_at_s: When to try a step down, on the same clock; None: nothing to release.
    """

    level: int = 0
    recheck_at_s: float | None = None
    release_at_s: float | None = None

    @property
    def listening(self) -> bool:
        """Whether LowMemory is a legal event."""
        return self.recheck_at_s is None

    def will_do_for(self, later: "PolicyState", settings: PolicySettings, now_s: float) -> bool:
        """Whether a policy may go on from this state as well as from its later one, right after
        low memory that has changed no level.

        Low memory draws a release deadline that is ``release_after_s`` to
        ``release_after_jitter_s`` more from now on. An earlier deadline that still lies between
        these two could have been drawn as well, so every promise about releases holds with it. The
        earlier recheck may be over, so that the policy listens at once; but it is ``recheck_s``
        after the last step up at least, as a step up would have changed the level.
        """
        soonest_s = now_s + settings.release_after_s
        latest_s = soonest_s + settings.release_after_jitter_s
        at_s, later_at_s = self.release_at_s, later.release_at_s
        return (
            self.level == later.level
            and at_s is not None
            and later_at_s is not None
            and soonest_s <= at_s <= latest_s
            and soonest_s <= later_at_s <= latest_s
        )


class BalloonPolicy:
    """The policy of one VM's balloon.

    Args:
        max_bytes: The target at the top level, in whole pages (``max_balloon_bytes``).
        settings: The policy's count of steps and its times.
        draw: Gives a uniform number of [0, 1); called once per arming of a timer.

    Raises:
        ConfigError: ``max_bytes`` is negative or not in whole pages.
    """

    def __init__(
        self, max_bytes: int, settings: PolicySettings, draw: Callable[[], float]
    ) -> None:
        if max_bytes < 0 or max_bytes % PAGE_SIZE:
            raise ConfigError(
                f"a balloon of at most {max_bytes} bytes; it must be whole pages of {PAGE_SIZE}"
            )
        self.max_bytes = max_bytes
        self.settings = settings
        self._draw = draw
        self.held: Reason | None = None
        """Why no step up may be taken at this moment; None where one may."""
        self._state = PolicyState()
        self._statistics = PolicyStatistics()

    @classmethod
    def restore(
        cls,
        state: PolicyState,
        max_bytes: int,
        settings: PolicySettings,
        draw: Callable[[], float],
    ) -> Self:
        """A policy that continues from another policy's ``state``; call ``resume`` next.

        The maximum may differ: the level is kept, and its target follows from the new maximum.

        Raises:
            ConfigError: as for the constructor.
            StateError: no policy with these settings can be in that state.
        """
        deadlines = (state.recheck_at_s, state.release_at_s)
        if (
            not 0 <= state.level <= settings.steps
            or (state.level > 0 and (state.release_at_s is None or max_bytes == 0))
            or not all(math.isfinite(at_s) for at_s in deadlines if at_s is not None)
        ):
            raise StateError(f"{state} is no state of a policy of {settings.steps} steps")
        policy = cls(max_bytes, settings, draw)
        policy._state = state
        return policy

    @property
    def level(self) -> int:
        """The level, 0…``settings.steps``."""
        return self._state.level

    @property
    def target_bytes(self) -> int:
        """The balloon's absolute target, 0…``max_bytes``, in whole pages."""
        # Compute in pages, not in bytes, so that the target is a whole number of pages.
        return self.max_bytes // PAGE_SIZE * self.level // self.settings.steps * PAGE_SIZE

    @property
    def listening(self) -> bool:
        """Whether LowMemory is a legal event now."""
        return self._state.recheck_at_s is None

    def state(self) -> PolicyState:
        """The state to hand to ``restore``."""
        return self._state

    def statistics(self) -> PolicyStatistics:
        """The counters."""
        return self._statistics

    def step(self, event: Event, now_s: float) -> Step:
        """Takes one event.

        Args:
            event: What happened.
            now_s: The clock, in seconds; only its differences between calls matter.

        Raises:
            StateError: the event is illegal in this state; nothing has changed.
        """
        match event:
            case LowMemory(reading):
                return self._low_memory(reading, now_s)
            case LowMemoryTimer():
                return self._recheck()
            case AvailableMemoryTimer(reading):
                return self._release(reading, now_s)
            case _:
                assert_never(event)

    def resume(self, now_s: float) -> Step:
        """The actions that make a controller match a restored state: target, listening, timers.

        Deadlines that have passed fire at once. A deadline that is later than that of a newly
        armed timer is moved to the newly armed timer's: otherwise, if the clock has started anew,
        the balloon might be kept for ever.
        """
        s, recheck_at_s, release_at_s = self.settings, None, None
        actions: list[Action] = [SetTarget(self.target_bytes, self.level)]
        if self._state.recheck_at_s is not None:
            longest_s = s.recheck_s + s.recheck_jitter_s
            delay_s = min(max(self._state.recheck_at_s - now_s, 0.0), longest_s)
            recheck_at_s = now_s + delay_s
            actions += [PauseLowMemory(), ArmTimer(Timer.LOW_MEMORY, delay_s)]
        if self._state.release_at_s is not None:
            longest_s = s.release_after_s + s.release_after_jitter_s
            delay_s = min(max(self._state.release_at_s - now_s, 0.0), longest_s)
            release_at_s = now_s + delay_s
            actions.append(ArmTimer(Timer.AVAILABLE_MEMORY, delay_s))
        if recheck_at_s is None:
            # Append ResumeLowMemory last: the controller may find low memory at once, which arms
            # the timers anew, and an ArmTimer after that would overwrite the newer time.
            actions.append(ResumeLowMemory())
        self._state = PolicyState(self.level, recheck_at_s, release_at_s)
        return Step(tuple(actions), self._decision(Reason.RESTORED, self.level))

    def resize(self, max_bytes: int) -> Step:
        """Changes the maximum.

        A change of the maximum alone never asks the guest for more memory. With a larger maximum
        the level becomes the highest level whose target is not above the present target. With a
        smaller maximum the level stays.

        Raises:
            ConfigError: as for the constructor.
        """
        if max_bytes < 0 or max_bytes % PAGE_SIZE:
            raise ConfigError(f"a balloon of at most {max_bytes} bytes, which are no whole pages")
        before, target = self.level, self.target_bytes
        grown = max_bytes > self.max_bytes
        self.max_bytes = max_bytes
        level = self._level_below(target) if grown else before
        self._state = self._state._replace(level=level if max_bytes else 0)
        actions = (SetTarget(self.target_bytes, self.level),)
        return Step(actions, self._decision(Reason.RESIZED, before))

    def adopt(self, held_bytes: int, now_s: float, hold_s: float | None = None) -> Step:
        """Takes over a balloon of ``held_bytes``: goes to the highest level whose target is not
        larger, and arms the release timer for ``hold_s``; None: as long as after low memory."""
        before, s = self.level, self.settings
        arm = self._arm(Timer.AVAILABLE_MEMORY, s.release_after_s, s.release_after_jitter_s)
        if hold_s is not None:
            arm = arm._replace(delay_s=hold_s)
        self.go_to(held_bytes, now_s + arm.delay_s)
        actions = (SetTarget(self.target_bytes, self.level), arm)
        return Step(actions, self._decision(Reason.ADOPTED, before))

    def go_to(self, held_bytes: int, release_at_s: float | None) -> None:
        """Goes to the highest level that asks for at most ``held_bytes``; None: no release."""
        level = self._level_below(held_bytes)
        self._state = self._state._replace(level=level, release_at_s=release_at_s)

    def _level_below(self, target_bytes: int) -> int:
        """The highest level whose target is not above this target; 0 where there is none."""
        most, target = self.max_bytes // PAGE_SIZE, target_bytes // PAGE_SIZE
        if not most or not target:
            return 0
        # Level k asks for floor(most × k / steps) pages: at most ``target``, as long as k is less
        # than (target + 1) × steps / most.
        return min(((target + 1) * self.settings.steps - 1) // most, self.settings.steps)

    def _low_memory(self, reading: Reading, now_s: float) -> Step:
        """Decides to grow the balloon by one level, where ``max_bytes`` and ``held`` allow it."""
        if not self.listening:
            raise StateError("LowMemory while the recheck is pending")
        if not reading.is_low:
            raise StateError(f"LowMemory with {reading}, which is not low")
        before, top = self.level, self.settings.steps
        up = self.max_bytes > 0 and before < top and self.held is None
        level = before + 1 if up else before
        s = self.settings
        recheck = self._arm(Timer.LOW_MEMORY, s.recheck_s, s.recheck_jitter_s)
        release = self._arm(Timer.AVAILABLE_MEMORY, s.release_after_s, s.release_after_jitter_s)
        self._state = PolicyState(level, now_s + recheck.delay_s, now_s + release.delay_s)
        self._statistics = PolicyStatistics(self._statistics[0] + 1, *self._statistics[1:])
        actions: tuple[Action, ...] = (PauseLowMemory(), recheck, release)
        if up:
            self._count("steps_up")
            actions = (SetTarget(self.target_bytes, level), *actions)
            reason = Reason.LOW_MEMORY
        elif not self.max_bytes:
            reason = Reason.NO_BALLOON
        else:
            reason = Reason.AT_MAXIMUM if before == top or self.held is None else self.held
        return Step(actions, self._decision(reason, before, reading))

    def _recheck(self) -> Step:
        if self.listening:
            raise StateError("LowMemoryTimer while listening")
        self._state = PolicyState(self._state.level, None, self._state.release_at_s)
        return Step((ResumeLowMemory(),), self._decision(Reason.RECHECK, self.level))

    def _release(self, seen: Reading | NeverLow | None, now_s: float) -> Step:
        if self._state.release_at_s is None:
            raise StateError("AvailableMemoryTimer while it is not armed")
        before = self.level
        reading = seen if isinstance(seen, Reading) else None
        if before == 0:
            self._state = self._state._replace(release_at_s=None)
            decision = self._decision(Reason.ALL_RETURNED, before, reading)
            return Step((DisarmTimer(Timer.AVAILABLE_MEMORY),), decision)
        s = self.settings
        arm = self._arm(Timer.AVAILABLE_MEMORY, s.release_every_s, s.release_every_jitter_s)
        self._state = self._state._replace(release_at_s=now_s + arm.delay_s)
        if seen is None:
            self._count("releases_unknown")
            return Step((arm,), self._decision(Reason.UNKNOWN, before))
        # Go a step down only if there is room for two increments, so that the step does not cause
        # low memory. Where the source is switched off (``reading`` is None) no room is required.
        reason, needed_mib = Reason.SWITCHED_OFF, None
        if reading is not None:
            needed_mib = self.needed_mib(reading)
            if reading.available_mib < needed_mib:
                self._count("releases_refused")
                decision = self._decision(Reason.NOT_ENOUGH_BACK, before, reading, needed_mib)
                return Step((arm,), decision)
            reason = Reason.MEMORY_BACK
        self._state = self._state._replace(level=before - 1)
        self._count("steps_down")
        decision = self._decision(reason, before, reading, needed_mib)
        return Step((SetTarget(self.target_bytes, self.level), arm), decision)

    def needed_mib(self, reading: Reading) -> int:
        """The room for a step down: margin and two increments, each rounded down as in crosvm."""
        return reading.margin_mib + 2 * (self.max_bytes // self.settings.steps >> 20)

    def _arm(self, timer: Timer, base_s: float, jitter_s: float) -> ArmTimer:
        return ArmTimer(timer, base_s + jitter_s * self._draw())

    def _decision(
        self,
        reason: Reason,
        level_before: int,
        reading: Reading | None = None,
        needed_mib: int | None = None,
    ) -> Decision:
        steps, target = self.settings.steps, self.target_bytes
        return Decision(reason, level_before, self.level, steps, target, reading, needed_mib)

    def _count(self, name: str) -> None:
        counted = getattr(self._statistics, name) + 1
        self._statistics = self._statistics._replace(**{name: counted})
