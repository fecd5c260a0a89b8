"""The 4 KiB parts of each huge page that are in the balloon. Pure; runs in the jail.

The kernel frees a huge page only as a whole, but a driver hands it over in parts of 4 KiB.
"""

from collections.abc import Sequence

from balloon_daemon.units import PAGE_SIZE
from balloon_daemon.virtio.guest_memory import MemoryRegion


class HugePages:
    """The huge pages of one guest's memory.

    Args:
        regions: all regions; regions of 4 KiB pages never have an entry here.
        must_tell_host: True: the driver uses no page of the balloon again before its deflation is
            answered. Otherwise a part that an earlier buffer handed over may be in use again, so
            nothing is remembered from one call of ``put_in`` to the next.
    """

    def __init__(self, regions: Sequence[MemoryRegion], *, must_tell_host: bool) -> None:
        self._page_bytes = [region.host_page_bytes for region in regions]
        # For each region: a huge page's number -> a bit mask of its 4 KiB parts that are in the
        # balloon. All complete huge pages share one int object as their mask, which saves memory:
        # a TiB of guest memory has half a million huge pages.
        self._parts: list[dict[int, int]] = [{} for _ in regions]
        self._whole = [(1 << page_bytes // PAGE_SIZE) - 1 for page_bytes in self._page_bytes]
        self._must_tell_host = must_tell_host

    def put_in(self, index: int, offset: int, length: int) -> list[int]:
        """Notes parts that the guest put into the balloon.

        Args:
            index: the region's number.
            offset: where the parts begin in the region, in bytes.
            length: in bytes, a multiple of 4 KiB.

        Returns:
            The huge pages of the region that are complete now and were not before.
        """
        parts = self._parts[index] if self._must_tell_host else {}
        whole = self._whole[index]
        complete = []
        for page, mask in _masks(offset, length, self._page_bytes[index]):
            before = parts.get(page, 0)
            now = before | mask
            parts[page] = whole if now == whole else now
            if now == whole != before:
                complete.append(page)
        return complete

    def take_out(self, index: int, offset: int, length: int) -> None:
        """Forgets parts that the guest took back; arguments as for ``put_in``."""
        parts = self._parts[index]
        for page, mask in _masks(offset, length, self._page_bytes[index]):
            if left := parts.get(page, 0) & ~mask:
                parts[page] = left
            else:
                parts.pop(page, None)

    def forget(self) -> None:
        """Forgets every part."""
        for parts in self._parts:
            parts.clear()


def _masks(offset: int, length: int, page_bytes: int) -> list[tuple[int, int]]:
    """The huge pages that a range touches, each with the bits of its touched 4 KiB parts."""
    page, start = divmod(offset, page_bytes)
    if start + length <= page_bytes:
        # The usual case needs no loop: a run of page frame numbers seldom crosses from one huge
        # page to the next.
        return [(page, ((1 << length // PAGE_SIZE) - 1) << start // PAGE_SIZE)]
    masks = []
    end = offset + length
    while offset < end:
        page, start = divmod(offset, page_bytes)
        stop = min(page_bytes, start + end - offset)
        count = (stop - start) // PAGE_SIZE
        masks.append((page, ((1 << count) - 1) << start // PAGE_SIZE))
        offset += stop - start
    return masks
