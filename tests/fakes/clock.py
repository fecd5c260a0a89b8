"""A clock that stands still until a test moves it, with one-shot timers that fire in order."""

from collections.abc import Hashable
from typing import Generic, TypeVar

TimerName = TypeVar("TimerName", bound=Hashable)


class FakeClock(Generic[TimerName]):
    """Seconds, and at most one deadline per timer.

    Attributes:
        now_s: The time; any number, as CLOCK_MONOTONIC's is.
        deadlines: The armed timers and when each is due.
    """

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s
        self.deadlines: dict[TimerName, float] = {}

    def arm(self, timer: TimerName, delay_s: float) -> None:
        """Lets the timer fire once after the delay; moves its deadline if it was armed."""
        self.deadlines[timer] = self.now_s + delay_s

    def disarm(self, timer: TimerName) -> None:
        """Stops the timer."""
        self.deadlines.pop(timer, None)

    def fire_next(self, late_s: float = 0.0) -> TimerName | None:
        """Advances to the earliest deadline, or past it, as a busy loop would.

        Returns:
            The timer that fired, no longer armed; None if none was.
        """
        if not self.deadlines:
            return None
        timer = min(self.deadlines, key=lambda name: self.deadlines[name])
        self.now_s = max(self.now_s, self.deadlines.pop(timer) + late_s)
        return timer
