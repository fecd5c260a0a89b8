"""How fast a balloon grows towards its target, and when to ask for no more. Pure.

A guest that cannot give what it is asked for goes on trying, and its allocations go through all of
its memory each time. So a balloon that is short of its target must grow: some every 4 s, and
15 MiB a second by the mean of 4 s. A healthy guest gives some hundred MiB a second, one that has
only a tenth of a CPU still gives 30. A balloon that was asked for less need not grow by more: the
policy asks a VM of 512 MiB for 16 MiB a second, and its VMM may tell sizes a second late, so that
the balloon is never seen to have reached its target on the way.
"""

import math

from balloon_daemon.units import MIB

WINDOW_S = 4.0
LEAST_BYTES = int(15 * MIB * WINDOW_S)
"""What a balloon must grow by in each window while it is short of its target."""

SHORT_BYTES = MIB
"""A balloon that lacks less than this has reached its target: Linux's driver gives 1 MiB at a
time."""

STUCK_BYTES = 16 * MIB
"""A balloon that lacks more than this, and has grown by less in a window, is stuck."""


class Progress:
    """One balloon's growth."""

    def __init__(self) -> None:
        self._target_bytes = self._balloon_bytes = 0
        self._stopped = False
        # The present window's beginning, and when the balloon was last larger than ever in it;
        # None: it is not short of its target.
        self._began: tuple[float, int] | None = None
        self._asked_bytes = 0
        """What the balloon can be expected to grow by in the window, however fast it is."""
        self._grew_at_s, self._most_bytes = -math.inf, 0

    def told(self, target_bytes: int, now_s: float) -> None:
        """Notes a target. One that rises further does not begin the window anew."""
        self._target_bytes = target_bytes
        self._follow(now_s)

    def moved(self, balloon_bytes: int, now_s: float) -> None:
        """Notes the balloon's size."""
        self._balloon_bytes = balloon_bytes
        if self._began is not None and balloon_bytes > self._most_bytes:
            self._grew_at_s, self._most_bytes = now_s, balloon_bytes
        self._follow(now_s)

    def stop(self, now_s: float, *, stopped: bool) -> None:
        """Notes whether the guest stands still, or nobody listens in it."""
        self._stopped = stopped
        self._began = None
        self._follow(now_s)

    @property
    def check_at_s(self) -> float:
        """When to look whether it is stalled; infinity: it is not short of its target."""
        if self._began is None:
            return math.inf
        return min(self._began[0], self._grew_at_s) + WINDOW_S

    def is_stuck(self, now_s: float) -> bool:
        """Whether it lacks much and has grown by next to nothing in a window."""
        if self._began is None or self._target_bytes - self._balloon_bytes <= STUCK_BYTES:
            return False
        since_s, bytes_then = self._began
        stands = self._stands(now_s)
        slow = now_s - since_s >= WINDOW_S and self._balloon_bytes - bytes_then < STUCK_BYTES
        return stands or slow

    def is_stalled(self, now_s: float) -> bool:
        """Whether it has not grown fast enough.

        ``check_at_s`` lies in the future afterwards: a new window has begun where it has, and none
        is under way where it has not, until the next ``told`` or ``moved``.
        """
        if self._began is None or now_s < self.check_at_s:
            return False
        since_s, bytes_then = self._began
        least = min(LEAST_BYTES * (now_s - since_s) / WINDOW_S, self._asked_bytes)
        if self._stands(now_s) or self._balloon_bytes - bytes_then < least:
            self._began = None
            return True
        self._begin(now_s)
        return False

    def _stands(self, now_s: float) -> bool:
        # The same sum as in ``check_at_s``. The difference now_s - _grew_at_s can be rounded to
        # less than WINDOW_S at that very time: nothing would be found, nothing changed, and the
        # same moment looked at again for ever.
        return now_s >= self._grew_at_s + WINDOW_S

    def _follow(self, now_s: float) -> None:
        if self._stopped or self._target_bytes - self._balloon_bytes < SHORT_BYTES:
            self._began = None
        elif self._began is None:
            self._begin(now_s)
            self._grew_at_s, self._most_bytes = now_s, self._balloon_bytes

    def _begin(self, now_s: float) -> None:
        self._began = (now_s, self._balloon_bytes)
        self._asked_bytes = self._target_bytes - self._balloon_bytes - SHORT_BYTES
