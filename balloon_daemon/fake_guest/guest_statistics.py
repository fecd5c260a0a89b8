"""The statistics that a fake guest reports. Runs in the fake guest's process."""

import numpy as np

from balloon_daemon.fake_guest.balloon_pages import BalloonPages
from balloon_daemon.fake_guest.ram import GuestRam, PageState
from balloon_daemon.units import PAGE_SIZE
from balloon_daemon.virtio.balloon import STAT_ENTRY, StatTag

# The tags in the order in which Linux sends them: first the counters of vmstat, then sizes. Linux
# 6.1 sends ten tags, Linux 7.2 sends sixteen.
_TAGS_10 = [0, 1, 2, 3, 8, 9, 4, 5, 6, 7]
_TAGS_16 = [0, 1, 2, 3, 8, 9, 10, 11, 12, 13, 14, 15, 4, 5, 6, 7]


class GuestStatistics:
    """A guest's statistics about its memory.

    Args:
        ram: the guest's memory.
        pages: its free pages, and those in the balloon.
        stat_tags: statistics in a buffer, 10 or 16.
    """

    def __init__(self, ram: GuestRam, pages: BalloonPages, stat_tags: int) -> None:
        self.keeps_total = False
        """Whether the total includes the balloon: Linux includes it with DEFLATE_ON_OOM."""
        self._ram = ram
        self._pages = pages
        self._tags = _TAGS_10 if stat_tags == 10 else _TAGS_16
        self._plugged_bytes = 0

    def memory_plugged(self, size_bytes: int) -> None:
        """Notes that memory was plugged in and is used (or out: negative)."""
        self._plugged_bytes += size_bytes

    def values(self) -> dict[StatTag, int]:
        """The reported statistics: bytes for memory, small counts for the rest."""
        patterned = self._ram.count(PageState.PATTERN)
        in_free = self._ram.state[self._pages.free.next()] == PageState.PATTERN
        cached = int(np.count_nonzero(in_free))
        values = {tag: 100 + tag for tag in StatTag}
        usable = self._ram.num_pages - len(self._pages.balloon)
        total = self._ram.num_pages if self.keeps_total else usable
        values[StatTag.MEMTOT] = total * PAGE_SIZE + self._plugged_bytes
        values[StatTag.MEMFREE] = (usable - patterned) * PAGE_SIZE
        values[StatTag.AVAIL] = len(self._pages.free) * PAGE_SIZE
        values[StatTag.CACHES] = cached * PAGE_SIZE
        return values

    def buffer(self) -> bytes:
        """The statistics as the driver writes them: (u16 tag, u64 value) each."""
        values = self.values()
        return b"".join(STAT_ENTRY.pack(tag, values[StatTag(tag)]) for tag in self._tags)
