"""Detects that a balloon changes its size although balloond has not asked for that. Pure.

A balloon that *shrinks* below its target is a guest in need: its driver takes pages back before
its kernel kills a process (VIRTIO_BALLOON_F_DEFLATE_ON_OOM), 1 MiB at a time. A balloon that
*grows* beyond its target has another controller, which sets targets of its own.

A balloon that becomes empty from one report to the next is no sign of need by itself: a guest that
is suspended or unloads its driver takes its whole balloon back, and balloond learns only a moment
later that the guest does not run.
"""

import math
from enum import Enum

from balloon_daemon.units import MIB

SETTLED_S = 4.0
"""How long after a new target a balloon may still follow the target before it: a VMM reports the
balloon's size up to a second late, and a driver finishes the work that it has begun."""

SHRUNK_BYTES = MIB
"""The least that a driver takes back at once."""

GROWN_BYTES = 16 * MIB
"""A balloon that exceeds its target by so much has grown by itself: a driver that gives huge pages
overshoots its target by less."""


class Drift(Enum):
    """How a balloon has changed by itself."""

    SHRUNK = "shrunk"
    GROWN = "grown"


class Bearing:
    """Compares one balloon's size with its targets: finds changes that no target explains
    (``Drift``)."""

    def __init__(self) -> None:
        self._target_bytes = self._balloon_bytes = 0
        self._lowered_at_s = self._raised_at_s = -math.inf
        # Whether the balloon is shrinking to a lower target, which is no drift. False once the
        # balloon has reached that target or has grown again, and SETTLED_S after a higher target.
        self._shrinks = False
        # The lowest target since the balloon began to shrink. The balloon may shrink to that size
        # even if a higher target was sent meanwhile, as its driver may not have read that yet.
        self._lowest_bytes = 0
        # Whether the target was lowered less than SETTLED_S ago, and no smaller size was reported
        # since: a size that is reported now may be from before the balloon began to shrink.
        self._may_be_late = False
        self._most_bytes = 0
        self._least_bytes: int | None = None
        self._gone_at_s: float | None = None
        self._is_new = False

    def told(self, target_bytes: int, now_s: float) -> None:
        """Notes a target that was sent."""
        follows = self._shrinks or self._may_be_late
        self._lowest_bytes = min(self._lowest_bytes, target_bytes) if follows else target_bytes
        if target_bytes < self._target_bytes:
            self._lowered_at_s, self._may_be_late = now_s, True
        elif target_bytes > self._target_bytes:
            self._raised_at_s = now_s
        self._target_bytes, self._gone_at_s = target_bytes, None
        if target_bytes < self._balloon_bytes:
            self._shrinks = True
        elif not self._shrinks:
            self._most_bytes = self._balloon_bytes

    def begin_anew(self, now_s: float) -> None:
        """Takes the balloon's next size as it is, whatever it is, not as drift: the guest was
        suspended or reset, or has just come."""
        self._lowered_at_s = now_s
        self._is_new = True
        self._gone_at_s = None

    @property
    def check_at_s(self) -> float:
        """When to call ``gone``; infinity: not at all."""
        return math.inf if self._gone_at_s is None else self._gone_at_s + SETTLED_S

    def gone(self, now_s: float) -> Drift | None:
        """SHRUNK if a balloon that became empty at once has stayed empty for ``SETTLED_S`` while
        its guest ran; else None."""
        if now_s < self.check_at_s:
            return None
        self._gone_at_s = None
        return Drift.SHRUNK

    def _may_shrink_on(self, now_s: float) -> bool:
        """Whether a balloon that shrinks may shrink further: it has not reached the lowest target,
        and no higher target was sent since, or the last one less than ``SETTLED_S`` ago."""
        is_last = self._target_bytes == self._lowest_bytes
        is_recent = is_last or now_s - self._raised_at_s < SETTLED_S
        return self._balloon_bytes > self._lowest_bytes and is_recent

    def moved(self, balloon_bytes: int, now_s: float) -> Drift | None:
        """Notes the balloon's size; returns how the balloon has changed by itself, or None."""
        if self._is_new:
            # A reset empties a guest's balloon, so do not compare this size with earlier sizes.
            self._is_new = False
            self._balloon_bytes = self._most_bytes = balloon_bytes
            self._lowest_bytes, self._may_be_late = self._target_bytes, False
            self._shrinks = self._target_bytes < balloon_bytes
        before, self._balloon_bytes = self._balloon_bytes, balloon_bytes
        if self._shrinks and (balloon_bytes > before or not self._may_shrink_on(now_s)):
            self._shrinks, self._most_bytes = False, balloon_bytes
        if balloon_bytes < before or now_s - self._lowered_at_s >= SETTLED_S:
            self._may_be_late = False
        if self._may_be_late and balloon_bytes > self._lowest_bytes:
            self._shrinks = True
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
