"""A mapping that removes nothing, and records the ranges that it was told to remove."""

import mmap

from balloon_daemon.device.reclaim import Reclaimer, runs_of
from balloon_daemon.units import PAGE_SIZE, FrontendAddr, GuestAddr
from balloon_daemon.virtio.guest_memory import GuestMemory, MemoryRegion


class RecordingMap:
    """Takes the place of the mapping of one region.

    Attributes:
        removed: (offset, length) of each call, in bytes.
    """

    def __init__(self, size_bytes: int, page_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._page_bytes = page_bytes
        self.removed: list[tuple[int, int]] = []

    def madvise(self, option: int, start: int, length: int) -> None:
        """Asserts MADV_REMOVE's conditions, and that the range is inside: mmap.madvise would clip
        it."""
        assert option == mmap.MADV_REMOVE
        assert start % self._page_bytes == length % self._page_bytes == 0
        assert length > 0
        assert 0 <= start < start + length <= self._size_bytes
        self.removed.append((start, length))


class RecordingReclaimer:
    """A Reclaimer over regions that are not mapped.

    Args:
        layout: (first PFN, pages, pages of a host page) of each region.
        must_tell_host: as for the Reclaimer.
    """

    def __init__(self, layout: list[tuple[int, int, int]], *, must_tell_host: bool = True) -> None:
        self.memory = GuestMemory(
            [
                MemoryRegion(
                    GuestAddr(pfn * PAGE_SIZE),
                    FrontendAddr(pfn * PAGE_SIZE),
                    pages * PAGE_SIZE,
                    memoryview(b""),
                    host_pages * PAGE_SIZE,
                )
                for pfn, pages, host_pages in layout
            ]
        )
        self._maps = [
            RecordingMap(region.size_bytes, region.host_page_bytes)
            for region in self.memory.regions
        ]
        self.faults: list[tuple[int, int]] = []
        self.reclaimer = Reclaimer(
            self.memory,
            self._maps,
            lambda errno, addr: self.faults.append((errno, addr)),
            must_tell_host=must_tell_host,
        )

    def inflate(self, pfns: list[int], head: int = 0) -> None:
        """Handles one buffer of the inflateq, from the driver's bytes on."""
        self.reclaimer.inflate("inflateq", head, runs_of(buffer_of(pfns)))

    def deflate(self, pfns: list[int], head: int = 0) -> None:
        """Handles one buffer of the deflateq."""
        self.reclaimer.deflate("deflateq", head, runs_of(buffer_of(pfns)))

    def take_removed(self) -> list[int]:
        """The PFNs removed since the last call, in the order of removal, repetitions too."""
        pfns: list[int] = []
        for region, mapped in zip(self.memory.regions, self._maps, strict=True):
            for offset, length in mapped.removed:
                first = (region.guest_addr + offset) // PAGE_SIZE
                pfns += range(first, first + length // PAGE_SIZE)
            mapped.removed.clear()
        return pfns


def buffer_of(pfns: list[int]) -> bytes:
    """Little-endian u32 page frame numbers, as a driver writes them."""
    return b"".join(pfn.to_bytes(4, "little") for pfn in pfns)
