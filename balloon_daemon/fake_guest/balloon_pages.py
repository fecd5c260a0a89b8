"""The pages that a fake guest has in its balloon, and the free ones among the rest.

Runs in the fake guest's process.
"""

import numpy as np

from balloon_daemon.fake_guest.pages import PageStack
from balloon_daemon.fake_guest.pattern import Pages
from balloon_daemon.fake_guest.ram import GuestRam, PageState
from balloon_daemon.units import PAGE_SIZE


class BalloonPages:
    """A guest's pages, on their way into the balloon and out of it.

    Args:
        ram: the guest's memory.
        free: pages that may go into the balloon.
        refill: True: pages that leave the balloon, and were touched before, are touched again.
    """

    def __init__(self, ram: GuestRam, free: PageStack, *, refill: bool) -> None:
        self.free = free
        self.balloon = PageStack(np.empty(0, np.int64), ram.num_pages)
        """Pages that the device has taken, as a used entry shows."""
        self._ram = ram
        self._refill = refill
        self._had_pattern = np.zeros(ram.num_pages, np.bool_)

    def give_up(self, pages: Pages) -> None:
        """Marks pages that are about to be sent to the device, so the guest uses them no more."""
        self._had_pattern[pages] = self._ram.state[pages] == PageState.PATTERN
        self._ram.state[pages] = PageState.BALLOON

    def give_back(self, pages: Pages) -> None:
        """Marks pages as free again."""
        self._ram.state[pages] = PageState.GIVEN
        self.free.give(pages)
        if self._refill:
            self._ram.touch(pages[self._had_pattern[pages]])

    def pfns(self, pages: Pages) -> bytes:
        """The pages' frame numbers as a driver writes them: little-endian u32 each."""
        return self._ram.numbers.pfns(pages).tobytes()

    def touch_free(self, size_bytes: int) -> int:
        """Touches free memory that is given up next, but leaves it free, as page cache is.

        Returns:
            The bytes touched; fewer than asked for when there is no more untouched memory.
        """
        pages = self.free.next()
        pages = pages[self._ram.state[pages] != PageState.PATTERN][: size_bytes // PAGE_SIZE]
        self._ram.touch(pages)
        return len(pages) * PAGE_SIZE
