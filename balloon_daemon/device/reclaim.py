"""Frees a guest's pages for the host: sorts them, merges neighbours, calls MADV_REMOVE.

Runs in the jail. Never removes a host page unless the guest has handed over all of it.
"""

import mmap
import struct
from collections import deque
from collections.abc import Callable, Sequence
from itertools import repeat
from operator import length_hint
from typing import Protocol

from balloon_daemon.device.huge_pages import HugePages
from balloon_daemon.errors import GuestError, Rule
from balloon_daemon.units import PAGE_SIZE
from balloon_daemon.virtio.guest_memory import GuestMemory

_REMOVE = mmap.MADV_REMOVE


class Mapping(Protocol):
    """The part of ``mmap.mmap`` that a reclaimer uses, for tests with another mapping."""

    def madvise(self, option: int, start: int, length: int, /) -> None: ...


HostFault = Callable[[int, int], None]
"""Called when the kernel refuses to free a page: (errno, guest-physical address)."""


Runs = tuple[list[int], list[int]]
"""The first PFN and the number of pages of each run, ascending, without overlap. Two lists,
because a pair for each run would double the cost of finding the runs."""


def coalesce(pfns: list[int]) -> Runs:
    """Sorts page frame numbers and merges neighbours.

    Args:
        pfns: in any order, with repetitions or without; sorted in place. At least one.
    """
    pfns.sort()
    first = pfns[0]
    firsts, counts, after = [first], [], first
    for pfn in pfns:
        if pfn > after:
            counts.append(after - first)
            firsts.append(pfn)
            first = pfn
        after = pfn + 1
    counts.append(after - first)
    return firsts, counts


_USUAL_PFNS = 256
"""PFNs in a buffer of Linux's driver (VIRTIO_BALLOON_ARRAY_PFNS_MAX)."""

_ENDS = struct.Struct(f"<I{4 * _USUAL_PFNS - 8}xI")
_ONES = sum(1 << 32 * place for place in range(_USUAL_PFNS))
_STEPS = sum(place << 32 * place for place in range(_USUAL_PFNS))


def runs_of(content: bytes) -> Runs:
    """The runs in a buffer of little-endian u32 page frame numbers, as ``coalesce`` gives them.

    A fresh guest gives up memory in large pieces, so a whole buffer is often one run, descending
    or ascending. One comparison finds this: the buffer, read as a number of 1024 bytes, equals the
    number that such a run would make: its first PFN in every place, minus or plus 0, 1, 2... As
    the two ends differ by exactly 255, no place of that number borrows from or carries into the
    next.

    Args:
        content: one PFN or more.
    """
    if len(content) == _ENDS.size:
        first, last = _ENDS.unpack(content)
        down, up = first - last == _USUAL_PFNS - 1, last - first == _USUAL_PFNS - 1
        if down and int.from_bytes(content, "little") == first * _ONES - _STEPS:
            return [last], [_USUAL_PFNS]
        if up and int.from_bytes(content, "little") == first * _ONES + _STEPS:
            return [first], [_USUAL_PFNS]
    return coalesce(memoryview(content).cast("I").tolist())


class Reclaimer:
    """Removes the memory of one guest.

    Args:
        memory: the guest's regions.
        maps: the mapping behind each of ``memory.regions``, in the same order; None for a region
            that cannot be freed: its pages are only counted.
        host_fault: called when the kernel refuses to free pages, which then stay in the guest's
            file.
        must_tell_host: True: the driver uses no page of the balloon again before its deflation is
            answered (VIRTIO_BALLOON_F_MUST_TELL_HOST). Otherwise a part that an earlier buffer
            handed over may be in use again, so a huge page is removed only if one buffer has all
            of it.
        pfns_name_pages: False: a page frame number may be the low 32 bits of a longer one, so no
            page of the balloon is removed.
    """

    def __init__(
        self,
        memory: GuestMemory,
        maps: Sequence[Mapping | None],
        host_fault: HostFault,
        *,
        must_tell_host: bool = False,
        pfns_name_pages: bool = True,
    ) -> None:
        self._memory = memory
        self._maps = tuple(maps)
        self._host_fault = host_fault
        # The indices of the regions in which a page frame number is enough to remove one page: the
        # region is mapped, and its pages have 4 KiB. A 4 KiB part of a huge page cannot be removed
        # by itself.
        self._plain = {
            index
            for index, region in enumerate(memory.regions)
            if region.host_page_bytes == PAGE_SIZE
            and self._maps[index] is not None
            and pfns_name_pages
        }
        self._pfns_name_pages = pfns_name_pages
        self._huge_pages = HugePages(memory.regions, must_tell_host=must_tell_host)
        self.removed_bytes = 0
        self.removals = 0
        self.reported_removed_bytes = 0
        """The part of ``removed_bytes`` that was not in the balloon but reported as free."""
        self.kept_pages = 0
        """4 KiB pages that the guest gave up in regions that cannot be freed."""
        self.refused_pages = 0
        """4 KiB pages that the kernel refused to free."""

    def inflate(self, queue: str, head: int, runs: Runs) -> None:
        """Removes the pages that the guest put into the balloon.

        Args:
            runs: as ``runs_of`` returns them.

        Raises:
            GuestError: a PFN outside guest memory; then nothing is removed at all.
        """
        firsts, counts = runs
        first, last, count = firsts[0], firsts[-1], counts[-1]
        # The quick way looks only at the range from the lowest to the highest page: if it is
        # inside one region, all runs are.
        place = self._memory.locate(first * PAGE_SIZE, (last + count - first) * PAGE_SIZE)
        if place is not None and place[0] in self._plain:
            self._remove_runs(place[0], runs, first * PAGE_SIZE - place[1])
            return
        for index, offset, length in self._located(queue, head, runs):
            if index in self._plain:
                self._remove(index, offset, length)
            elif self._maps[index] is None or not self._pfns_name_pages:
                self.kept_pages += length // PAGE_SIZE
            else:
                page_bytes = self._memory.regions[index].host_page_bytes
                for page in self._huge_pages.put_in(index, offset, length):
                    self._remove(index, page * page_bytes, page_bytes)

    def deflate(self, queue: str, head: int, runs: Runs) -> None:
        """Forgets the pages that the guest took back.

        Args:
            runs: as ``runs_of`` returns them.

        Raises:
            GuestError: a PFN outside guest memory; then nothing is forgotten.
        """
        for index, offset, length in self._located(queue, head, runs):
            if self._memory.regions[index].host_page_bytes > PAGE_SIZE:
                self._huge_pages.take_out(index, offset, length)

    def forget(self) -> None:
        """Forgets all parts of huge pages that the guest put into the balloon.

        Called for a chain of the deflateq that breaks a rule. The chain is answered all the same,
        and the guest then uses its pages again; which pages these are is unknown.
        """
        self._huge_pages.forget()

    def discard(self, queue: str, head: int, ranges: Sequence[tuple[int, int]]) -> int:
        """Removes ranges that the guest reported as free (free page reporting).

        Args:
            ranges: (guest-physical address, length in bytes); only host pages that lie wholly
                inside one range are removed.

        Returns:
            Bytes that were reported.

        Raises:
            GuestError: a range outside guest memory; then nothing is removed.
        """
        places, before = [], self.removed_bytes
        for addr, length in ranges:
            pieces, outside = self._pieces(addr, length)
            if outside is not None:
                raise GuestError(queue, head, Rule.ADDRESS, addr)
            places += pieces
        for index, offset, length in places:
            page_bytes = self._memory.regions[index].host_page_bytes
            start = -(-offset // page_bytes) * page_bytes
            end = (offset + length) // page_bytes * page_bytes
            if start < end and self._maps[index] is not None:
                self._remove(index, start, end - start)
        self.reported_removed_bytes += self.removed_bytes - before
        return sum(length for _, length in ranges)

    def _located(self, queue: str, head: int, runs: Runs) -> list[tuple[int, int, int]]:
        """The place of each run: (region, offset, length); all are checked before any is
        removed."""
        places = []
        for first, count in zip(*runs, strict=True):
            pieces, outside = self._pieces(first * PAGE_SIZE, count * PAGE_SIZE)
            if outside is not None:
                raise GuestError(queue, head, Rule.PFN, outside // PAGE_SIZE)
            places += pieces
        return places

    def _pieces(self, addr: int, rest: int) -> tuple[list[tuple[int, int, int]], int | None]:
        """Finds a range of guest-physical addresses, which may reach from a region into the next.

        Returns:
            (region, offset, length) of each piece, and the first address outside guest memory,
            None where all of it is inside.
        """
        pieces: list[tuple[int, int, int]] = []
        while rest or not pieces:
            place = self._memory.locate(addr, min(rest, 1))
            if place is None:
                return [], addr
            index, offset = place
            length = min(rest, self._memory.regions[index].size_bytes - offset)
            pieces.append((index, offset, length))
            addr += length
            rest -= length
        return pieces, None

    def _remove_runs(self, index: int, runs: Runs, start: int) -> None:
        """Removes runs of one region that begins at guest-physical ``start``."""
        page_bytes = PAGE_SIZE
        firsts, counts = runs
        mapped = self._maps[index]
        assert mapped is not None
        offsets = [first * page_bytes - start for first in firsts]
        lengths = [count * page_bytes for count in counts]
        places, sizes = iter(offsets), iter(lengths)
        removals = map(mapped.madvise, repeat(_REMOVE), places, sizes)
        failed = 0
        while True:
            try:
                # This line removes the pages: ``removals`` makes each madvise call only when it is
                # asked for the next item. A deque of length 0 asks for all of them in C, so no
                # bytecode runs between two calls.
                deque(removals, 0)
                break
            except OSError as err:
                place = len(offsets) - length_hint(places) - 1
                self._host_fault(err.errno or 0, offsets[place] + start)
                self.removed_bytes -= lengths[place]
                self.refused_pages += lengths[place] // page_bytes
                failed += 1
        self.removed_bytes += sum(lengths)
        self.removals += len(firsts) - failed

    def _remove(self, index: int, offset: int, length: int) -> None:
        mapped = self._maps[index]
        assert mapped is not None
        try:
            mapped.madvise(_REMOVE, offset, length)
        except OSError as err:
            region = self._memory.regions[index]
            self.refused_pages += length // PAGE_SIZE
            self._host_fault(err.errno or 0, region.guest_addr + offset)
            return
        self.removals += 1
        self.removed_bytes += length
