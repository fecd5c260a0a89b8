"""When a balloon moves although nobody here has asked for it. Pure.

A balloon that *shrinks* below its target is a guest in need: its driver takes pages back before
its kernel kills a process (VIRTIO_BALLOON_F_DEFLATE_ON_OOM), 1 MiB at a time. A balloon that
*grows* beyond its target has another controller, which sets targets of its own.

A balloon that is all gone from one report to the next is no sign of need by itself: a guest that
is suspended or unloads its driver takes all of it back, and is known to stand still only a moment
later.
"""

import math
from enum import Enum

from balloon_daemon.units import MIB

SETTLED_S = 4.0
"""For so long after a lower target a balloon may still follow the one before: a VMM reports its
size up to a second late, and a driver finishes what it has begun."""

SHRUNK_BYTES = MIB
"""The least that a driver takes back at once."""

GROWN_BYTES = 16 * MIB
"""So much more than its target: a driver that gives huge pages overshoots by less."""


class Drift(Enum):
    """Where a balloon has gone by itself."""

    SHRUNK = "shrunk"
    GROWN = "grown"


class Bearing:
    """Compares one balloon's size with its targets."""

    def __init__(self) -> None:
        self._target_bytes = self._balloon_bytes = 0
        self._lowered_at_s = -math.inf
        # Whether the balloon is on its way down to a target; until it has arrived, or has grown
        # again, its shrinking is what it was asked for.
        self._shrinks = False
        self._most_bytes = 0
        self._least_bytes: int | None = None
        self._gone_at_s: float | None = None
        self._is_new = False

    def told(self, target_bytes: int, now_s: float) -> None:
        """Notes a target."""
        if target_bytes < self._target_bytes:
            self._lowered_at_s = now_s
        self._target_bytes, self._gone_at_s = target_bytes, None
        if target_bytes < self._balloon_bytes:
            self._shrinks = True
        elif not self._shrinks:
            self._most_bytes = self._balloon_bytes

    def begin_anew(self, now_s: float) -> None:
        """Takes the balloon's next size as it is: its guest was suspended, reset, or has just
        come."""
        self._lowered_at_s = now_s
        self._is_new = True
        self._gone_at_s = None

    @property
    def check_at_s(self) -> float:
        """When to call ``gone``; infinity: not at all."""
        return math.inf if self._gone_at_s is None else self._gone_at_s + SETTLED_S

    def gone(self, now_s: float) -> Drift | None:
        """Whether a balloon that went all at once has stayed away while its guest ran."""
        if now_s < self.check_at_s:
            return None
        self._gone_at_s = None
        return Drift.SHRUNK

    def moved(self, balloon_bytes: int, now_s: float) -> Drift | None:
        """Notes the balloon's size; answers where it has gone by itself."""
        if self._is_new:
            # A guest that was reset has nothing of its balloon any more.
            self._is_new = False
            self._balloon_bytes = self._most_bytes = balloon_bytes
            self._shrinks = self._target_bytes < balloon_bytes
        before, self._balloon_bytes = self._balloon_bytes, balloon_bytes
        if self._shrinks and (balloon_bytes > before or balloon_bytes <= self._target_bytes):
            self._shrinks, self._most_bytes = False, balloon_bytes
        self._most_bytes = max(self._most_bytes, balloon_bytes)
        if self._least_bytes is None or now_s - self._lowered_at_s < SETTLED_S:
            self._least_bytes = balloon_bytes
        self._least_bytes = min(self._least_bytes, balloon_bytes)
        if balloon_bytes:
            self._gone_at_s = None
        if balloon_bytes - max(self._target_bytes, self._least_bytes) >= GROWN_BYTES:
            return Drift.GROWN
        kept = min(self._target_bytes, self._most_bytes)
        if self._shrinks or kept - balloon_bytes < SHRUNK_BYTES:
            return None
        if balloon_bytes == 0 and before > SHRUNK_BYTES:
            self._gone_at_s = now_s
            self._most_bytes = 0
            return None
        return Drift.SHRUNK
