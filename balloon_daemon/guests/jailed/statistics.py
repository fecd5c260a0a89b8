"""Turns a driver's statistics, numbered by tags, into the seam's named fields. Pure."""

from collections.abc import Iterable

from balloon_daemon.guests.seam import Stats
from balloon_daemon.virtio.balloon import StatTag

_FIELD = {
    StatTag.SWAP_IN: "swap_in_bytes",
    StatTag.SWAP_OUT: "swap_out_bytes",
    StatTag.MAJFLT: "major_faults",
    StatTag.MINFLT: "minor_faults",
    StatTag.MEMFREE: "free_bytes",
    StatTag.MEMTOT: "total_bytes",
    StatTag.AVAIL: "available_bytes",
    StatTag.CACHES: "caches_bytes",
    StatTag.HTLB_PGALLOC: "hugetlb_allocations",
    StatTag.HTLB_PGFAIL: "hugetlb_failures",
    StatTag.OOM_KILL: "oom_kills",
    StatTag.ALLOC_STALL: "alloc_stalls",
    StatTag.ASYNC_SCAN: "async_scans",
    StatTag.DIRECT_SCAN: "direct_scans",
    StatTag.ASYNC_RECLAIM: "async_reclaims",
    StatTag.DIRECT_RECLAIM: "direct_reclaims",
}

UNKNOWN = (1 << 64) - 1
"""The value (−1) that a driver sends for a figure that it does not have; Windows' driver does."""


def named_stats(entries: Iterable[tuple[int, int]], at_s: float) -> Stats:
    """Names a driver's statistics.

    Args:
        entries: (tag, value) pairs. Unknown tags are ignored; the last of several equal tags
            counts.
        at_s: when they arrived.
    """
    fields = {
        _FIELD[StatTag(tag)]: value for tag, value in entries if tag in _FIELD and value != UNKNOWN
    }
    return Stats(at_s, **fields)
