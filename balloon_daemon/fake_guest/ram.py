"""Guest memory in a memfd, with a pattern in every page that the guest has not given up.

Runs in the fake guest's process. The state of every page is kept here and not in the guest's
memory, so nothing that the daemon does can forge it.

A hole of a memfd must never be read through the mapping: unlike anonymous memory it has no shared
zero page, so a mere read allocates a page, and the file's count of blocks is wrong. Holes are
found by SEEK_DATA, and contents are compared by preadv.
"""

import contextlib
import mmap
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from balloon_daemon.errors import ConfigError
from balloon_daemon.fake_guest.page_numbers import PageNumbers
from balloon_daemon.fake_guest.pattern import WORDS, Pages, Pattern
from balloon_daemon.units import GIB, PAGE_SIZE, FrontendAddr, GuestAddr
from balloon_daemon.vhost_user.messages import RegionDescription
from balloon_daemon.virtio.guest_memory import GuestMemory, MemoryRegion

BATCH_PAGES = 2048
"""Pages written or compared at once: 8 MiB, so that numpy's overhead for each call does not
matter."""

# QEMU's machine type Q35 puts all memory of a guest of up to 2.75 GiB below 4 GiB. Of a larger
# guest, it puts 2 GiB there, and the rest begins at 4 GiB.
Q35_ALL_LOW_BYTES = 0xB000_0000
Q35_LOW_BYTES = 2 * GIB
HIGH_ADDR = 4 * GIB
VGA_START = 0xA_0000
VGA_END = 0xC_0000

# Front-end addresses differ from guest addresses, as with a real VMM, so that code which mixes the
# two up fails.
FRONTEND_BASE = 0x7F12_3400_0000


class PageState(IntEnum):
    """The expected content of a page."""

    FRESH = 0
    """Never touched, or filled with zeros since: a hole, or zeros."""
    PATTERN = 1
    """Touched and kept: the page's own pattern."""
    GIVEN = 2
    """Given up once and not touched since: any content."""
    BALLOON = 3
    """In the balloon now: any content, and best no memory."""
    DRIVER = 4
    """Used by the driver's rings and buffers."""


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of a check of all kept pages.

    Attributes:
        pages_checked: pages that should hold their pattern, each compared whole.
        pages_corrupt: pages without their pattern, and untouched pages that are not zero.
        bad_pfns: the first of the corrupt pages, at most 16.
        balloon_resident: pages in the balloon for which the host still holds memory.
    """

    pages_checked: int
    pages_corrupt: int
    bad_pfns: list[int]
    balloon_resident: int


def q35_layout(
    size_bytes: int, low_bytes: int | None = None, *, vga_hole: bool = False
) -> list[tuple[int, int]]:
    """The places where QEMU's q35 machine puts guest memory.

    Args:
        size_bytes: the guest's memory, whole pages.
        low_bytes: how much of it lies below the hole at 4 GiB; None for q35's own rule.
        vga_hole: True: leave out the VGA's 128 KiB below 1 MiB, as QEMU's memory table does; the
            guest then has so much less.

    Returns:
        (guest-physical address, size in bytes) of each region, ascending.
    """
    if low_bytes is None:
        low_bytes = size_bytes if size_bytes <= Q35_ALL_LOW_BYTES else Q35_LOW_BYTES
    low_bytes = min(low_bytes, size_bytes)
    low = [(0, low_bytes)]
    if vga_hole and low_bytes > VGA_END:
        low = [(0, VGA_START), (VGA_END, low_bytes - VGA_END)]
    high = [(HIGH_ADDR, size_bytes - low_bytes)] if low_bytes < size_bytes else []
    return [*low, *high]


class GuestRam:
    """The memory of one guest.

    Args:
        layout: (guest-physical address, size in bytes) of each region, ascending, page-aligned.
        seed: makes this guest's pattern different from any other guest's.

    Raises:
        ConfigError: a region that is empty or not page-aligned.
        OSError: the kernel has no memory for the mapping.
    """

    def __init__(self, layout: Sequence[tuple[int, int]], *, seed: int = 1) -> None:
        for addr, size in layout:
            if size <= 0 or addr % PAGE_SIZE or size % PAGE_SIZE:
                raise ConfigError(f"a region of {size} bytes at {addr:#x} is not whole pages")
        self.size_bytes = sum(size for _, size in layout)
        self.num_pages = self.size_bytes // PAGE_SIZE
        self.fd = os.memfd_create("fake-guest-ram", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, self.size_bytes)
        self._map = mmap.mmap(self.fd, self.size_bytes)
        self._view = memoryview(self._map)
        self.regions = list(_describe(layout))
        self.memory = GuestMemory(
            [
                MemoryRegion(
                    region.guest_addr,
                    region.frontend_addr,
                    region.size_bytes,
                    self._view[region.mmap_offset_bytes :][: region.size_bytes],
                )
                for region in self.regions
            ]
        )
        self._words = np.frombuffer(self._map, np.uint64).reshape(self.num_pages, WORDS)
        self.state = np.full(self.num_pages, PageState.FRESH, np.uint8)
        self._pattern = Pattern(self.num_pages, seed)
        self.numbers = PageNumbers(self.regions)

    def close(self) -> None:
        """Frees the memory, unless another object still holds a view of it."""
        os.close(self.fd)
        self.fd = -1
        for region in self.memory.regions:
            if region.view is not None:
                region.view.release()
        self.memory = GuestMemory([])
        self._words = np.empty((0, WORDS), np.uint64)
        self._view.release()
        # Unmap now. If the mapping stayed until the garbage collector runs, a test with many
        # guests would fill the host's memory.
        with contextlib.suppress(BufferError):
            self._map.close()

    def shared(self) -> list[tuple[RegionDescription, int]]:
        """Each region with the fd of its file: one file for all, as with QEMU's memfd backend."""
        return [(region, self.fd) for region in self.regions]

    # -- numbers --------------------------------------------------------------------------

    def count(self, state: PageState) -> int:
        """How many pages are in a state."""
        return int(np.count_nonzero(self.state == state))

    def blocks_bytes(self) -> int:
        """The memory that the host holds for this guest, in bytes."""
        return os.fstat(self.fd).st_blocks * 512

    def reserve(self, size_bytes: int) -> GuestAddr:
        """Sets memory aside for the driver, at the end of the last region.

        Returns:
            The guest-physical address of its first byte; page-aligned.

        Raises:
            ConfigError: the last region is not larger.
        """
        pages = -(-size_bytes // PAGE_SIZE)
        last = self.regions[-1]
        if pages * PAGE_SIZE >= last.size_bytes:
            raise ConfigError(f"{size_bytes} bytes for rings leave nothing of the last region")
        self.state[self.num_pages - pages :] = PageState.DRIVER
        return GuestAddr(last.guest_addr + last.size_bytes - pages * PAGE_SIZE)

    # -- contents -------------------------------------------------------------------------

    def touch(self, pages: Pages) -> None:
        """Writes a new pattern to pages, like a guest that uses them."""
        for at in range(0, len(pages), BATCH_PAGES):
            part = pages[at : at + BATCH_PAGES]
            self._pattern.renew(part)
            self._words[part] = self._pattern.of(part)
        self.state[pages] = PageState.PATTERN

    def zero(self, pages: Pages) -> None:
        """Fills pages with zeros, like a guest that clears what it frees."""
        for at in range(0, len(pages), BATCH_PAGES):
            self._words[pages[at : at + BATCH_PAGES]] = 0
        self.state[pages] = PageState.FRESH

    def data_extents(self) -> Iterator[tuple[int, int]]:
        """The parts of the memfd for which the host holds memory, as (first page, end page)."""
        at = 0
        while True:
            try:
                at = os.lseek(self.fd, at, os.SEEK_DATA)
            except OSError:  # ENXIO: a hole up to the end.
                return
            end = os.lseek(self.fd, at, os.SEEK_HOLE)
            yield at // PAGE_SIZE, -(-end // PAGE_SIZE)
            at = end

    def resident(self) -> NDArray[np.bool_]:
        """For each page, whether the host holds memory for it."""
        found = np.zeros(self.num_pages, np.bool_)
        for first, end in self.data_extents():
            found[first:end] = True
        return found

    def check(self) -> CheckResult:
        """Compares every kept page with the content that the guest gave it."""
        resident = self.resident()
        patterned = self.state == PageState.PATTERN
        bad = [np.flatnonzero(patterned & ~resident)]
        bad += [pages[wrong] for pages, wrong in self._compare(patterned & resident)]
        fresh = (self.state == PageState.FRESH) & resident
        bad += [pages[wrong] for pages, wrong in self._compare(fresh, zero=True)]
        corrupt = np.sort(np.concatenate(bad))
        return CheckResult(
            int(np.count_nonzero(patterned)),
            len(corrupt),
            self.numbers.pfns(corrupt[:16]).tolist(),
            int(np.count_nonzero((self.state == PageState.BALLOON) & resident)),
        )

    def _compare(
        self, chosen: NDArray[np.bool_], *, zero: bool = False
    ) -> Iterator[tuple[Pages, NDArray[np.bool_]]]:
        pages = np.flatnonzero(chosen)
        content = np.empty((BATCH_PAGES, WORDS), np.uint64)
        raw = memoryview(content.data).cast("B")
        for at in range(0, len(pages), BATCH_PAGES):
            part = pages[at : at + BATCH_PAGES]
            breaks = np.flatnonzero(np.diff(part) != 1) + 1
            starts = [0, *breaks.tolist()]
            for start, end in zip(starts, [*starts[1:], len(part)], strict=True):
                target = raw[start * PAGE_SIZE : end * PAGE_SIZE]
                got = os.preadv(self.fd, [target], int(part[start]) * PAGE_SIZE)
                if got != len(target):
                    raise OSError(f"read {got} of {len(target)} bytes of guest memory")
            expected = np.uint64(0) if zero else self._pattern.of(part)
            yield part, (content[: len(part)] != expected).any(axis=1)


def _describe(layout: Sequence[tuple[int, int]]) -> Iterator[RegionDescription]:
    offset = 0
    for number, (addr, size) in enumerate(layout):
        # Leave 1 MiB between regions in the front-end's addresses, so that an address behind a
        # region's end is invalid.
        frontend = FRONTEND_BASE + offset + number * 0x10_0000
        yield RegionDescription(GuestAddr(addr), size, FrontendAddr(frontend), offset)
        offset += size
