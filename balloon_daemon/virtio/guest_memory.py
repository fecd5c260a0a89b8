"""The regions of guest memory, and where in them an address is.

Pure: the bytes arrive as memoryviews, mapped by the caller.
Source: vhost-user, "Memory region description"; virtio 1.3, 2.7.
"""

from bisect import bisect_right
from collections.abc import Sequence

from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.units import FrontendAddr, GuestAddr


class MemoryRegion(NamedTuple):
    """One region of guest memory, mapped whole.

    Attributes:
        guest_addr: guest-physical address of the first byte.
        frontend_addr: the address of that byte in the front-end.
        size_bytes: length, at least 1.
        view: all of its bytes, writable; None for a region that is not mapped.
        host_page_bytes: the size in which the host can free this memory.
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
        """The size of all of the guest's memory."""

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
        """The bytes at a guest-physical range; None where it is not inside one mapped region."""
        place = self.locate(addr, length)
        if place is None:
            return None
        index, offset = place
        view = self._views[index]
        return None if view is None else view[offset : offset + length]

    def view_of_frontend(self, addr: FrontendAddr, length: int) -> memoryview | None:
        """The bytes at a front-end address, as SET_VRING_ADDR gives the addresses of a ring's
        areas; None where they are not inside one mapped region."""
        for region in self.regions:
            offset = addr - region.frontend_addr
            if offset >= 0 and offset + length <= region.size_bytes:
                return None if region.view is None else region.view[offset : offset + length]
        return None
