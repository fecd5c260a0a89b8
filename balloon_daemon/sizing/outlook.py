"""What the host would have available without any balloon: now, lately and soon. Pure.

A balloon that grows makes memory available, so available memory alone does not show what programs
want. *Bare* is available memory less what is in balloons: it changes only by what programs do.
"""

import math
from collections import deque

from balloon_daemon.named_tuple import NamedTuple

CALM_S = 12.0
"""Balloons give back only memory for which all readings of so many seconds show room: somewhat
more than the 10 s within which no target may go the other way. On the hosts of docs/judgement.md:
with 20 s guests lack more, and memory is low for no less time."""

FALL_S = 3.0
"""How far back the fall of bare memory is measured: over one, two and three readings, of which the
steepest fall counts. A surge of a second is not to be averaged away."""

NEXT_S = 0.5
"""Readings less than this apart are not compared to find a fall of bare memory."""


USED_AFTER_S, USED_FOR_S = 3.0, 30.0
"""How long after memory went back it is judged whether guests have used it (they need that long to
empty their balloons), and how long it counts as used if they have."""


class _Seen(NamedTuple):
    """A reading.

    Attributes:
        at_s: when it was taken.
        bare_bytes: available memory less the balloons' sizes.
        owed_bytes: available memory less the balloons' targets.
    """

    at_s: float
    bare_bytes: int
    owed_bytes: int


class Outlook:
    """The readings of the last ``CALM_S`` seconds, and what follows from them."""

    def __init__(self) -> None:
        self._seen = deque[_Seen]()

    def take(self, available_bytes: int, actual_bytes: int, told_bytes: int, now_s: float) -> None:
        """Takes a reading.

        Args:
            available_bytes: what the host has available.
            actual_bytes: the sum of all balloons' sizes.
            told_bytes: the sum of all balloons' targets.
            now_s: the present time.
        """
        seen = self._seen
        seen.append(_Seen(now_s, available_bytes - actual_bytes, available_bytes - told_bytes))
        while len(seen) > 1 and now_s - seen[1].at_s >= CALM_S:
            seen.popleft()

    def forget(self) -> None:
        """Forgets all readings, because the next one comes after a gap."""
        self._seen.clear()

    @property
    def bare_bytes(self) -> int:
        """Available memory less the balloons' sizes, by the last reading."""
        return self._seen[-1].bare_bytes

    @property
    def is_long(self) -> bool:
        """Whether there are readings of ``CALM_S`` seconds."""
        return bool(self._seen) and self._seen[-1].at_s - self._seen[0].at_s >= CALM_S

    @property
    def least_bytes(self) -> int:
        """The least bare memory of all readings that are kept."""
        return min(each.bare_bytes for each in self._seen)

    @property
    def fall_bytes_s(self) -> float:
        """By how much bare memory has fallen in a second, over the last ``FALL_S`` or a part of
        them; 0: not at all.

        A VMM may report a balloon's size a second late. What such a balloon has given is available
        already: bare memory rises by it before the report, and falls back at the report.
        ``owed_bytes``, with targets in place of sizes, does not fall then. So only a fall of both
        counts.
        """
        last, most = self._seen[-1], 0.0
        for each in reversed(self._seen):
            seconds = last.at_s - each.at_s
            if seconds > FALL_S + NEXT_S:
                break
            if seconds >= NEXT_S:
                bare = each.bare_bytes - last.bare_bytes
                owed = each.owed_bytes - last.owed_bytes
                most = max(most, min(bare, owed) / seconds)
        return most


class Returned:
    """The memory that went back to guests last, and whether they have used it at once.

    Linux's driver frees the pages that it takes out of a balloon, and the host backs them only
    once something in the guest uses them. Other guests may use all of them at once.
    """

    def __init__(self) -> None:
        self.at_s = -math.inf
        """When memory went back last."""
        self._size_bytes = self._available_bytes = 0
        self._used_until_s = -math.inf

    def note(self, size_bytes: int, available_bytes: int, now_s: float) -> None:
        """Notes that memory goes back, and what the host has available now."""
        before_bytes = self._size_bytes if now_s == self.at_s else 0
        self.at_s, self._size_bytes = now_s, before_bytes + size_bytes
        self._available_bytes = available_bytes

    def is_used(self, available_bytes: int, now_s: float) -> bool:
        """Whether guests have used most of the memory that went back to them last, so that the
        host no longer has it available; also if it is too soon to know."""
        if now_s - self.at_s < USED_AFTER_S:
            return True
        if self._size_bytes:
            if available_bytes < self._available_bytes - self._size_bytes * 3 // 4:
                self._used_until_s = now_s + USED_FOR_S
            self._size_bytes = 0
        return now_s < self._used_until_s
