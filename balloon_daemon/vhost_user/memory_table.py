"""The front-end's memory table: its regions, checked against each other and their files.

Pure: the controller passes ``inspect``, which examines regions' files.

A VM must not end because of a region that its balloon cannot use, but most VMMs exit when a
back-end hangs up during their start. So a region whose file cannot be freed is kept as *never
freed*. If no device may map its file either, the file is closed at once (the later close of a file
of FUSE, for example, may block for ever). A table that contradicts itself is *unsound*: it holds
no regions, and no device is forked for it, until the front-end sends another table. Only a message
whose descriptors do not match its regions raises FrontendError.

Source: vhost-user, "Memory region description", SET_MEM_TABLE, ADD_MEM_REG, REM_MEM_REG.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from balloon_daemon.errors import FrontendError
from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.units import PAGE_SIZE
from balloon_daemon.vhost_user.messages import RegionDescription

MAX_MEM_SLOTS = 256
"""Memory regions that one guest may have; each costs the device a mapping."""

PFN_LIMIT_BYTES = PAGE_SIZE << 32
"""16 TiB. A balloon's page frame number is a u32 (virtio 1.3, 5.5.6); for a larger number Linux's
driver sends the low 32 bits, which name another page."""


class Fd(Protocol):
    """A file descriptor that its owner closes."""

    def fileno(self) -> int: ...
    def close(self) -> None: ...


class FileFacts(NamedTuple):
    """The facts of a region's file.

    Attributes:
        size_bytes: its length; None where nobody has asked for it.
        page_bytes: the smallest piece of the file that the host can free.
        never_freed: why no part of it can be freed, worded as the end of a sentence; "" where it
            can.
        mappable: whether a device may map it.
    """

    size_bytes: int | None
    page_bytes: int
    never_freed: str = ""
    mappable: bool = True


Inspect = Callable[[Sequence[Fd]], Iterable[FileFacts]]
"""Gives the facts of files, in the order of their descriptors, which came with one message."""


class Region(NamedTuple):
    """A memory region and its file.

    Attributes:
        description: its addresses and size.
        fd: the file; several regions may share one file, each with a descriptor of its own. None
            where no device may map the file.
        page_bytes: the smallest piece of the file that the host can free.
        never_freed: why no part of it can be freed; "" where it can.
    """

    description: RegionDescription
    fd: Fd | None
    page_bytes: int
    never_freed: str = ""

    def close(self) -> None:
        """Closes its file."""
        if self.fd is not None:
            self.fd.close()


_NO_FILE = FileFacts(None, PAGE_SIZE, "is not known here", mappable=False)


class _Ranges:
    """Ranges of addresses that do not overlap, in their order.

    A new range is compared with its two neighbours, not with all others: a table may have 256
    regions, and a controller that takes over reads the tables of all VMs before it serves one.
    """

    def __init__(self) -> None:
        self._rows: list[tuple[int, int, RegionDescription]] = []
        """Each range's first address and end, and the region that it is of."""

    def add(self, start: int, region: RegionDescription) -> RegionDescription | None:
        """Adds a region's range, unless it overlaps one of another region; returns that region."""
        rows, end = self._rows, start + region.size_bytes
        at = bisect_left(rows, (start,))
        for other_start, other_end, other in rows[max(0, at - 1) : at + 1]:
            if start < other_end and other_start < end:
                return other
        rows.insert(at, (start, end, region))
        return None

    def remove(self, start: int) -> None:
        """Removes the range that begins at this address."""
        del self._rows[bisect_left(self._rows, (start,))]

    def clear(self) -> None:
        """Removes all ranges."""
        self._rows.clear()


class MemoryTable:
    """The regions of one guest.

    Args:
        inspect: examines the regions' files.

    Attributes:
        inspect: the same; a controller that takes a guest over sets another for that time.
        regions: the regions, in the order in which they came.
    """

    def __init__(self, inspect: Inspect) -> None:
        self.inspect = inspect
        self.regions: list[Region] = []
        self._guest, self._frontend = _Ranges(), _Ranges()
        """The regions' ranges of guest-physical addresses, and of the front-end's."""
        self.unsound = ""
        """Why no device can be forked for this table; "" where one can."""

    @property
    def size_bytes(self) -> int:
        """The size of all regions together."""
        return sum(region.description.size_bytes for region in self.regions)

    @property
    def ram_bytes(self) -> int:
        """The size of all regions that the host can free. Regions that only the guest knows to be
        no RAM (a shared-memory device, virtio-mem's unplugged part) are counted too."""
        return sum(r.description.size_bytes for r in self.regions if not r.never_freed)

    @property
    def has_unnameable(self) -> bool:
        """Whether a part of the guest's memory has no page frame number of 32 bits."""
        return any(
            r.description.guest_addr + r.description.size_bytes > PFN_LIMIT_BYTES
            for r in self.regions
        )

    def set(
        self, request: str, descriptions: Sequence[RegionDescription], fds: Sequence[Fd]
    ) -> None:
        """Replaces the whole table (SET_MEM_TABLE).

        Raises:
            FrontendError: not exactly one descriptor for each region; then nothing has changed.
        """
        if len(descriptions) != len(fds):
            raise FrontendError(
                request, f"{len(descriptions)} regions with {len(fds)} file descriptors"
            )
        self.close()
        for description, fd, facts in zip(descriptions, fds, self.inspect(fds), strict=True):
            self._add(description, fd, facts)

    def add(self, description: RegionDescription, fd: Fd | None) -> None:
        """Adds a region (ADD_MEM_REG), or marks the table unsound because of it.

        Args:
            description: its addresses and size.
            fd: its file; None where another controller had closed the file already.
        """
        for facts in [_NO_FILE] if fd is None or self.unsound else self.inspect([fd]):
            self._add(description, fd, facts)

    def _add(self, description: RegionDescription, fd: Fd | None, facts: FileFacts) -> None:
        new = Region(description, fd, PAGE_SIZE)
        if self.unsound:
            new.close()
            return
        self.regions.append(new)
        self.unsound = self._problem(description, facts)
        if self.unsound:
            self._drop()
            return
        never_freed = facts.never_freed
        if not never_freed and description.mmap_offset_bytes % facts.page_bytes:
            never_freed = f"is not aligned to its file's pages of {facts.page_bytes} bytes"
        if not facts.mappable or description.mmap_offset_bytes % facts.page_bytes:
            new.close()
            fd = None
        self.regions[-1] = Region(description, fd, facts.page_bytes, never_freed)

    def remove(self, gone: RegionDescription) -> bool:
        """Removes the region of these addresses and size (REM_MEM_REG); False if there is none."""
        for region in self.regions:
            old = region.description
            if (old.guest_addr, old.size_bytes, old.frontend_addr) == (
                gone.guest_addr,
                gone.size_bytes,
                gone.frontend_addr,
            ):
                self.regions.remove(region)
                self._guest.remove(old.guest_addr)
                self._frontend.remove(old.frontend_addr)
                region.close()
                return True
        return False

    def lose(self, why: str) -> None:
        """Forgets the whole table, after descriptors of a message about the table were lost."""
        self.unsound = why
        self._drop()

    def close(self) -> None:
        """Closes the regions' files and forgets them."""
        self.unsound = ""
        self._drop()

    def _drop(self) -> None:
        for region in self.regions:
            region.close()
        self.regions = []
        self._guest.clear()
        self._frontend.clear()

    def _problem(self, new: RegionDescription, facts: FileFacts) -> str:
        """Adds the ranges of the region just added; why the table contradicts itself with it, ""
        where it does not."""
        where = f"memory region at {new.guest_addr:#x}"
        starts = (new.guest_addr, new.frontend_addr, new.mmap_offset_bytes)
        if len(self.regions) > MAX_MEM_SLOTS:
            return f"more than {MAX_MEM_SLOTS} memory regions"
        if not new.size_bytes or any(n % PAGE_SIZE for n in (new.size_bytes, *starts)):
            return f"{where} is empty or not aligned to {PAGE_SIZE} bytes"
        if any(start + new.size_bytes > 1 << 64 for start in starts):
            return f"{where} of {new.size_bytes} bytes wraps around"
        other = self._guest.add(new.guest_addr, new) or self._frontend.add(new.frontend_addr, new)
        if other is not None:
            return f"{where} overlaps that at {other.guest_addr:#x}"
        size = facts.size_bytes
        if size is not None and new.mmap_offset_bytes + new.size_bytes > size:
            return f"{where} exceeds its file of {size} bytes"
        return ""
