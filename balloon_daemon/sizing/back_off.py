"""How long to leave alone what went wrong: twice as long each time it does so again. Pure."""

import math

FIRST_S = 60.0
MOST_S = 1800.0
"""From one minute to half an hour."""


class BackOff:
    """Waits that double while what they wait for goes wrong again soon after each of them."""

    def __init__(self) -> None:
        self.until_s = -math.inf
        """When the last wait ends, or ended."""
        self._length_s = 0.0

    def begin(self, now_s: float) -> float:
        """Begins a wait, and returns its length.

        It is twice the last one, unless all went well for as long as that after its end.
        """
        again = now_s - self.until_s < self._length_s
        self._length_s = min(2 * self._length_s, MOST_S) if again else FIRST_S
        self.until_s = now_s + self._length_s
        return self._length_s

    def lasts(self, now_s: float) -> bool:
        """Whether the wait lasts."""
        return now_s < self.until_s
