"""Slowing down a guest that keeps its device busy for nothing.

Pure arithmetic on a clock that the caller reads. Kicks without work and chains that break a rule
cost a guest next to nothing, and the device a core of the host: what they cost is taken out of an
allowance, and once that is used up the device does not listen until it is earned again.
"""

SHARE = 0.05
"""Of one core, that a guest may waste for ever."""

ALLOWANCE_S = 0.05
"""That it may waste at once: some 5,000 kicks, far more than an honest driver sends too many."""

WAKE_UP_S = 20e-6
"""What a turn costs besides its work: epoll_wait, reading the kick, waking up."""


class Pace:
    """The allowance of one guest."""

    def __init__(self) -> None:
        self._left_s = ALLOWANCE_S
        self._at_s: float | None = None

    def waste(self, now_s: float, spent_s: float) -> float:
        """Charges a turn that did no work.

        Args:
            now_s: the clock, at the turn's end.
            spent_s: how long the turn took.

        Returns:
            Seconds to rest before the next turn; 0 while the allowance lasts.
        """
        if self._at_s is not None:
            self._left_s = min(ALLOWANCE_S, self._left_s + (now_s - self._at_s) * SHARE)
        self._at_s = now_s
        self._left_s -= spent_s + WAKE_UP_S
        return max(0.0, -self._left_s / SHARE)
