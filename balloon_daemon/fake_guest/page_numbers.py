"""Converts between page frame numbers and pages of a fake guest's memory."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from balloon_daemon.fake_guest.pattern import Pages
from balloon_daemon.units import PAGE_SIZE
from balloon_daemon.vhost_user.messages import RegionDescription


class PageNumbers:
    """The place of each page of the memfd in the guest's physical memory.

    Args:
        regions: ascending, each behind the one before in the memfd.
    """

    def __init__(self, regions: Sequence[RegionDescription]) -> None:
        self._starts = np.array([r.mmap_offset_bytes // PAGE_SIZE for r in regions])
        self._start_pfns = np.array([r.guest_addr // PAGE_SIZE for r in regions])
        self._lengths = np.array([r.size_bytes // PAGE_SIZE for r in regions])

    def pfns(self, pages: Pages) -> NDArray[np.uint32]:
        """The page frame numbers of pages."""
        region = np.searchsorted(self._starts, pages, side="right") - 1
        pfns: NDArray[np.uint32] = (
            pages - self._starts[region] + self._start_pfns[region]
        ).astype(np.uint32)
        return pfns

    def pages(self, pfns: NDArray[np.integer]) -> Pages:
        """The pages behind page frame numbers; −1 for those outside the guest's memory."""
        wide = pfns.astype(np.int64)
        region = np.searchsorted(self._start_pfns, wide, side="right") - 1
        offset = wide - self._start_pfns[region]
        inside = (region >= 0) & (offset < self._lengths[region])
        return np.where(inside, offset + self._starts[region], -1).astype(np.int64)
