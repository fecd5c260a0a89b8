"""How long to wait after a failure: twice as long after each further failure. Pure."""

import math

FIRST_S = 60.0
MOST_S = 1800.0
"""The shortest wait (``FIRST_S``) and the longest (``MOST_S``): a minute and half an hour."""


class BackOff:
    """One wait after each failure: twice as long as the last wait if the failure comes soon after
    the last wait's end."""

    def __init__(self) -> None:
        self.until_s = -math.inf
        """When the last wait ends, or ended."""
        self._length_s = 0.0

    def begin(self, now_s: float) -> float:
        """Begins a wait, and returns its length.

        The wait is twice as long as the last wait. It is ``FIRST_S`` again if at least the last
        wait's length has passed without a failure since the last wait's end.
        """
        again = now_s - self.until_s < self._length_s
        self._length_s = min(2 * self._length_s, MOST_S) if again else FIRST_S
        self.until_s = now_s + self._length_s
        return self._length_s

    def state(self) -> tuple[float, float]:
        """When the last wait ends or ended, and its length: for ``resume``."""
        return self.until_s, self._length_s

    def resume(self, state: tuple[float, float]) -> None:
        """Goes on from another back-off's ``state``."""
        self.until_s, self._length_s = state

    def lasts(self, now_s: float) -> bool:
        """Whether the wait lasts."""
        return now_s < self.until_s
