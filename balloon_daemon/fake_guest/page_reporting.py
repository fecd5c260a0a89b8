"""Free page reporting by the driver: the free blocks, and those that the device holds meanwhile.

Runs in the fake guest's process. Source: virtio 1.3, 5.5.6.7; Linux ``mm/page_reporting.c``.
"""

from collections.abc import Callable

import numpy as np

from balloon_daemon.errors import ConfigError
from balloon_daemon.fake_guest.pages import PageStack, whole_blocks
from balloon_daemon.fake_guest.pattern import Pages
from balloon_daemon.fake_guest.ram import GuestRam, PageState
from balloon_daemon.fake_guest.rings import Rings
from balloon_daemon.fake_guest.settings import DriverCounters
from balloon_daemon.units import PAGE_SIZE
from balloon_daemon.virtio.balloon import BalloonQueue

MAX_REPORT_RANGES = 32
"""Ranges in one report by Linux (PAGE_REPORTING_CAPACITY)."""

REPORT_BLOCK_PAGES = 512
"""Linux reports free blocks of 2 MiB and larger (pageblock_order)."""


class PageReport:
    """One walk over all free blocks, at most 32 of them at a time.

    Args:
        ram: the guest's memory.
        free: its free pages.
        block_pages: pages of a block, a power of two.
        queue_size: entries of the queue; a chain can have no more descriptors.
        poison_val: what free pages must hold, also once they were reported; None: anything. For
            another value than 0 the pages' own pattern stands here: a device must leave either.
    """

    def __init__(
        self,
        ram: GuestRam,
        free: PageStack,
        block_pages: int = REPORT_BLOCK_PAGES,
        queue_size: int = MAX_REPORT_RANGES,
        poison_val: int | None = None,
    ) -> None:
        self._ram = ram
        self._free = free
        self._max_ranges = min(MAX_REPORT_RANGES, queue_size)
        self._waiting: Pages = np.empty(0, np.int64)
        self._blocks: list[int] = whole_blocks(ram, free, block_pages).tolist()
        self._poison_val = poison_val
        self.block_pages = block_pages
        self.sent_bytes = 0

    @property
    def blocks_left(self) -> int:
        """Blocks that no chain has reported yet."""
        return len(self._blocks)

    def next_chain(self) -> list[tuple[int, int]]:
        """Isolates the next blocks: until ``finish`` the guest neither uses them nor gives them
        up.

        Returns:
            (guest-physical address, length in bytes) of each; empty when the walk is over.
        """
        # Check again which blocks are free: some blocks that were free when this walk began may
        # have gone into the balloon.
        still_free = set(whole_blocks(self._ram, self._free, self.block_pages).tolist())
        left = [block for block in self._blocks if block in still_free]
        now, self._blocks = left[: self._max_ranges], left[self._max_ranges :]
        if not now:
            return []
        firsts = np.array(now, np.int64)
        self._waiting = (firsts[:, None] + np.arange(self.block_pages)).ravel()
        self._free.remove(self._waiting)
        if self._poison_val is None:
            self._ram.state[self._waiting] = PageState.GIVEN
        elif self._poison_val == 0:
            self._ram.zero(self._waiting)
        length = self.block_pages * PAGE_SIZE
        self.sent_bytes += len(now) * length
        return [(int(pfn) * PAGE_SIZE, length) for pfn in self._ram.numbers.pfns(firsts)]

    def finish(self) -> None:
        """Frees the chain's blocks, to be used last: the device used the chain, or is gone."""
        self._free.give_last(self._waiting)
        self._waiting = self._waiting[:0]


class PageReporting:
    """Reports of free pages, one at a time.

    Args:
        ram: the guest's memory.
        free: its free pages.
        rings: sends the reports.
        counters: reports are counted here.
        on_reported: called with a report's bytes, once the device has answered all of it.
        poison_val: as for ``PageReport``.
    """

    def __init__(
        self,
        ram: GuestRam,
        free: PageStack,
        rings: Rings,
        counters: DriverCounters,
        on_reported: Callable[[int], None],
        poison_val: int | None = None,
    ) -> None:
        self._ram = ram
        self._free = free
        self._rings = rings
        self._counters = counters
        self._on_reported = on_reported
        self._poison_val = poison_val
        self._report: PageReport | None = None

    @property
    def idle(self) -> bool:
        """Whether no report is under way."""
        return self._report is None

    def start(self, block_pages: int = REPORT_BLOCK_PAGES) -> int:
        """Reports every aligned free block that holds memory, 32 in a chain.

        Returns:
            The blocks that will be reported; ``on_reported`` is called after the last one was
            used.

        Raises:
            ConfigError: no reporting queue, or a report is under way.
        """
        queue = self._rings.queues.get(BalloonQueue.REPORTING_VQ)
        if queue is None:
            raise ConfigError("free page reporting was not negotiated")
        if self._report is not None:
            raise ConfigError("a report is under way")
        self._report = PageReport(self._ram, self._free, block_pages, queue.size, self._poison_val)
        blocks = self._report.blocks_left
        self._send(self._report)
        return blocks

    def used(self) -> None:
        """Handles the used entry of the chain that was sent last."""
        assert self._report is not None
        self._report.finish()
        self._send(self._report)

    def stop(self) -> None:
        """Ends reporting because the queue is gone: the blocks of its chain are free again."""
        if self._report is not None:
            self._report.finish()
        self._report = None

    def _send(self, report: PageReport) -> None:
        chain = report.next_chain()
        if not chain:
            self._report = None
            self._on_reported(report.sent_bytes)
            return
        self._counters.report_buffers += 1
        self._counters.reported_bytes += sum(length for _, length in chain)
        self._rings.send(BalloonQueue.REPORTING_VQ, [], chain)
