"""How fast a balloon grows towards its target, and when to ask for no more. Pure.

A guest that cannot give what it is asked for goes on trying, and each time its allocations search
all of its memory. So a balloon that is short of its target must grow: at least a little every 4 s,
and by 15 MiB a second on average over 4 s. A healthy guest gives some hundred MiB a second; a
guest that has only a tenth of a CPU still gives 30 MiB. A balloon that was asked for less need not
grow by more than it was asked for: the policy asks a VM of 512 MiB for 16 MiB a second, and a VMM
may report sizes a second late. Then no report shows the balloon at its target while targets rise.
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
        # When the present window began, and the balloon's size then; None: the balloon is not
        # short of its target.
        self._began: tuple[float, int] | None = None
        self._asked_bytes = 0
        """How much the balloon lacked when the window began: it need not grow by more in the
        window."""
        self._grew_at_s, self._most_bytes = -math.inf, 0

    def told(self, target_bytes: int, now_s: float) -> None:
        """Notes a target. A target that rises further does not begin a new window."""
        self._target_bytes = target_bytes
        self._follow(now_s)

    def moved(self, balloon_bytes: int, now_s: float) -> None:
        """Notes the balloon's size."""
        self._balloon_bytes = balloon_bytes
        if self._began is not None and balloon_bytes > self._most_bytes:
            self._grew_at_s, self._most_bytes = now_s, balloon_bytes
        self._follow(now_s)

    def stop(self, now_s: float, *, stopped: bool) -> None:
        """Notes whether the guest is paused, or has no driver that listens."""
        self._stopped = stopped
        self._began = None
        self._follow(now_s)

    @property
    def check_at_s(self) -> float:
        """When to call ``is_stalled``; infinity: the balloon is not short of its target."""
        if self._began is None:
            return math.inf
        return min(self._began[0], self._grew_at_s) + WINDOW_S

    def is_stuck(self, now_s: float) -> bool:
        """Whether the balloon lacks more than ``STUCK_BYTES``, and has grown by less in a whole
        window or has not grown for ``WINDOW_S``."""
        if self._began is None or self._target_bytes - self._balloon_bytes <= STUCK_BYTES:
            return False
        since_s, bytes_then = self._began
        stands = self._stands(now_s)
        slow = now_s - since_s >= WINDOW_S and self._balloon_bytes - bytes_then < STUCK_BYTES
        return stands or slow

    def is_stalled(self, now_s: float) -> bool:
        """Whether the balloon has not grown fast enough.

        Afterwards ``check_at_s`` lies in the future. If the balloon has grown enough, a new window
        has begun; if not, no window begins until the next ``told`` or ``moved``.
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
        # Compute the same sum as ``check_at_s``. At exactly that time the difference now_s -
        # _grew_at_s may be rounded to less than WINDOW_S. Then no stall would be found here,
        # ``check_at_s`` would stay in the past, and the deadline would fire again for ever.
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
