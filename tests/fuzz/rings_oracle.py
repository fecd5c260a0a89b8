"""What a device may remove, worked out from the bytes that it read, in the plainest way.

It shares no code with the device: chains are walked, PFNs are looked up and huge pages are put
together a second time here, by sets of pages. Told of each read and each removal as it happens.
"""

from collections.abc import Mapping, Sequence

from balloon_daemon.virtio.balloon import BalloonQueue
from tests.harness.invariants import require

PAGE = 4096
WRITE = 2
Place = tuple[int, int]
"""Region and page in it."""


class Oracle:
    """The record of one device, and the judgement on each of its removals.

    Args:
        regions: (first PFN, pages) of each.
        parts: for a region on huge host pages, 4 KiB pages in each of them.
        removed: gets every page that was rightfully removed.
        remembers: a huge page may be put together from several buffers.
    """

    def __init__(
        self,
        regions: Sequence[tuple[int, int]],
        parts: Mapping[int, int],
        removed: set[Place],
        *,
        remembers: bool,
    ) -> None:
        self._regions = regions
        self._parts = parts
        self._queue = BalloonQueue.INFLATEQ
        self._handed_over: set[Place] = set()
        """Pages in the balloon, as far as this device has read."""
        self._ever_removed = removed
        self._remembers = remembers
        self.chains = 0
        self._begin_chain()

    def _begin_chain(self) -> None:
        self._descriptors: list[tuple[int, ...]] = []
        self._seen: list[int] = []
        self._content = b""
        self._buffers = 0
        self._removed: set[Place] = set()
        self._faulted = False

    # --- what happens -------------------------------------------------------------------------

    def begin(self, queue: BalloonQueue) -> None:
        """The device begins to serve a queue."""
        self._queue = queue
        self.chains = 0
        self._begin_chain()

    def read_entry(self, head: int) -> None:
        """It took an entry of the available ring: a chain begins, the one before is done."""
        self._close_chain()
        self._begin_chain()
        self.chains += 1

    def read_descriptor(self, index: int, fields: tuple[int, ...]) -> None:
        """It read a descriptor."""
        require(not self._buffers, "a descriptor read after a buffer", index)
        self._seen.append(index)
        self._descriptors.append(fields)

    def read_buffer(self, content: bytes) -> None:
        """It copied a buffer out of guest memory."""
        require(not self._removed, "a buffer read after a removal")
        self._buffers += 1
        require(self._buffers <= len(self._descriptors), "a buffer read twice", self._buffers)
        self._content += content

    def faulted(self) -> None:
        """It called the present chain broken."""
        require(not self._removed, "removed pages for a chain that it then refused")
        self._faulted = True

    def removed(self, region: int, offset: int, length: int) -> None:
        """It is about to remove a range. Judged at once."""
        require(offset % PAGE == length % PAGE == 0 and length > 0, "no pages", offset, length)
        places = {(region, page) for page in range(offset // PAGE, (offset + length) // PAGE)}
        allowed = self._allowed()
        require(places <= allowed, "removed what was not handed over", sorted(places - allowed))
        self._removed |= places
        self._ever_removed |= places

    def end(self) -> None:
        """The device is done with the queue for now."""
        self._close_chain()
        self._begin_chain()

    # --- what it should be --------------------------------------------------------------------

    def _allowed(self) -> set[Place]:
        match self._queue:
            case BalloonQueue.INFLATEQ:
                named = self._named_pages()
                inside = self._handed_over | named if self._remembers else named
                return {p for p in self._with_neighbours(named) if self._whole(p) <= inside}
            case BalloonQueue.REPORTING_VQ:
                return self._reported()
            case _:
                return set()

    def _close_chain(self) -> None:
        """What the chain did to the balloon; that all it named was removed where it was sound."""
        if self._faulted or not self._descriptors:
            return
        named = self._named_pages()
        if self._queue is BalloonQueue.INFLATEQ:
            self._handed_over |= named
            small = {place for place in named if self._parts.get(place[0], 1) == 1}
            require(small <= self._removed, "kept what was handed over", small - self._removed)
        elif self._queue is BalloonQueue.DEFLATEQ:
            self._handed_over -= named

    def _named_pages(self) -> set[Place]:
        content = self._content
        pfns = {
            int.from_bytes(content[at : at + 4], "little") for at in range(0, len(content) - 3, 4)
        }
        return {place for pfn in pfns if (place := self._place(pfn)) is not None}

    def _place(self, pfn: int) -> Place | None:
        for region, (first, pages) in enumerate(self._regions):
            if first <= pfn < first + pages:
                return region, pfn - first
        return None

    def _whole(self, place: Place) -> set[Place]:
        """All 4 KiB pages of the host page that a page is in."""
        region, page = place
        parts = self._parts.get(region, 1)
        first = page // parts * parts
        return {(region, n) for n in range(first, first + parts)}

    def _with_neighbours(self, places: set[Place]) -> set[Place]:
        return {each for place in places for each in self._whole(place)}

    def _reported(self) -> set[Place]:
        """Host pages that lie wholly inside one writable range."""
        allowed: set[Place] = set()
        for addr, length, flags, _ in self._descriptors:
            if not flags & WRITE:
                continue
            for region, (first, pages) in enumerate(self._regions):
                begin, end = addr - first * PAGE, addr + length - first * PAGE
                if begin < 0 or end > pages * PAGE:
                    continue
                inside = {(region, n) for n in range(-(-begin // PAGE), end // PAGE)}
                allowed |= {p for p in inside if self._whole(p) <= inside}
        return allowed
