"""Guest memory as regions, and the way from an address to a place in one of them.

Pure: the bytes arrive as memoryviews; who mapped them is not known here.
Source: vhost-user, "Memory region description"; virtio 1.3, 2.7.
"""

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from balloon_daemon.units import FrontendAddr, GuestAddr


class MemoryRegion(NamedTuple):
    """One region of guest memory, mapped whole.

    Attributes:
        guest_addr: guest-physical address of the first byte.
        frontend_addr: the same byte's address in the front-end.
        size_bytes: length, at least 1.
        view: all of its bytes, writable; None where nobody may touch them.
        host_page_bytes: the size in which the host can give this memory back.
    """

    guest_addr: GuestAddr
    frontend_addr: FrontendAddr
    size_bytes: int
    view: memoryview | None
    host_page_bytes: int = 4096


class GuestMemory:
    """The regions of one guest, in ascending order of guest-physical address."""

    def __init__(self, regions: Sequence[MemoryRegion]) -> None:
        self.regions = tuple(sorted(regions, key=lambda region: region.guest_addr))
        self._starts = [region.guest_addr for region in self.regions]
        self._sizes = [region.size_bytes for region in self.regions]
        self._views = [region.view for region in self.regions]
        self.size_bytes = sum(self._sizes)
        """All of the guest's memory."""

    def locate(self, addr: int, length: int) -> tuple[int, int] | None:
        """Finds the one region that holds ``length`` bytes at a guest-physical address.

        Returns:
            (index into ``regions``, offset in bytes), or None where the range is not wholly
            inside one region.
        """
        index = bisect_right(self._starts, addr) - 1
        if index < 0:
            return None
        offset = addr - self._starts[index]
        return (index, offset) if offset + length <= self._sizes[index] else None

    def view(self, addr: int, length: int) -> memoryview | None:
        """The bytes at a guest-physical range; None where it is not inside one region that may be
        touched."""
        place = self.locate(addr, length)
        if place is None:
            return None
        index, offset = place
        view = self._views[index]
        return None if view is None else view[offset : offset + length]

    def view_of_frontend(self, addr: FrontendAddr, length: int) -> memoryview | None:
        """The same for a front-end address, which only ring addresses are."""
        for region in self.regions:
            offset = addr - region.frontend_addr
            if offset >= 0 and offset + length <= region.size_bytes:
                return None if region.view is None else region.view[offset : offset + length]
        return None
