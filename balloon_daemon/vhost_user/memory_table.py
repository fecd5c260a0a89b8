"""The front-end's memory table: its regions, checked against each other and their files.

Pure: a file is looked at through ``inspect``, which the controller gives.
Source: vhost-user, "Memory region description", SET_MEM_TABLE, ADD_MEM_REG, REM_MEM_REG.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from balloon_daemon.errors import FrontendError
from balloon_daemon.units import PAGE_SIZE
from balloon_daemon.vhost_user.messages import RegionDescription

MAX_MEM_SLOTS = 256
"""Memory regions that one guest may have; each costs the device a mapping."""


class Fd(Protocol):
    """A file descriptor with an owner."""

    def fileno(self) -> int: ...
    def close(self) -> None: ...


class Region(NamedTuple):
    """A memory region and its file.

    Attributes:
        description: where it is.
        fd: the file; several regions may share one, each with a descriptor of its own.
        page_bytes: the smallest piece of it that the host can free.
    """

    description: RegionDescription
    fd: Fd
    page_bytes: int


class MemoryTable:
    """The regions of one guest. A request that is refused changes nothing.

    Args:
        inspect: (descriptor) -> (length of the file, smallest piece that the host can free), in
            bytes; raises ValueError or OSError for what cannot be guest memory.
    """

    def __init__(self, inspect: Callable[[Fd], tuple[int, int]]) -> None:
        self._inspect = inspect
        self.regions: list[Region] = []

    @property
    def size_bytes(self) -> int:
        """All of the guest's memory."""
        return sum(region.description.size_bytes for region in self.regions)

    def set(
        self, request: str, descriptions: Sequence[RegionDescription], fds: Sequence[Fd]
    ) -> None:
        """Replaces the whole table (SET_MEM_TABLE). Raises FrontendError."""
        if len(descriptions) != len(fds):
            raise FrontendError(
                request, f"{len(descriptions)} regions with {len(fds)} file descriptors"
            )
        regions: list[Region] = []
        for description, fd in zip(descriptions, fds, strict=True):
            regions.append(self._checked(request, description, fd, regions))
        self.close()
        self.regions = regions

    def add(self, request: str, description: RegionDescription, fd: Fd) -> None:
        """Adds a region (ADD_MEM_REG). Raises FrontendError."""
        if len(self.regions) >= MAX_MEM_SLOTS:
            raise FrontendError(request, f"more than {MAX_MEM_SLOTS} regions")
        self.regions.append(self._checked(request, description, fd, self.regions))

    def remove(self, request: str, gone: RegionDescription) -> None:
        """Removes the region of these addresses and size (REM_MEM_REG). Raises FrontendError."""
        for region in self.regions:
            old = region.description
            if (old.guest_addr, old.size_bytes, old.frontend_addr) == (
                gone.guest_addr,
                gone.size_bytes,
                gone.frontend_addr,
            ):
                self.regions.remove(region)
                region.fd.close()
                return
        raise FrontendError(request, f"there is no such region at {gone.guest_addr:#x}")

    def close(self) -> None:
        """Closes the regions' files and forgets them."""
        for region in self.regions:
            region.fd.close()
        self.regions = []

    def _checked(
        self, request: str, new: RegionDescription, fd: Fd, others: Sequence[Region]
    ) -> Region:
        where = f"region at {new.guest_addr:#x}"
        starts = (new.guest_addr, new.frontend_addr, new.mmap_offset_bytes)
        if not new.size_bytes or any(n % PAGE_SIZE for n in (new.size_bytes, *starts)):
            raise FrontendError(request, f"{where} is empty or not aligned to {PAGE_SIZE} bytes")
        if any(start + new.size_bytes > 1 << 64 for start in starts):
            raise FrontendError(request, f"{where} of {new.size_bytes} bytes wraps around")
        for other in others:
            old = other.description
            if _overlap(new.guest_addr, new.size_bytes, old.guest_addr, old.size_bytes) or (
                _overlap(new.frontend_addr, new.size_bytes, old.frontend_addr, old.size_bytes)
            ):
                raise FrontendError(request, f"{where} overlaps that at {old.guest_addr:#x}")
        try:
            file_bytes, page_bytes = self._inspect(fd)
        except (OSError, ValueError) as err:
            raise FrontendError(request, f"{where}: its file {err}") from err
        if new.mmap_offset_bytes + new.size_bytes > file_bytes:
            raise FrontendError(request, f"{where} exceeds its file of {file_bytes} bytes")
        if new.mmap_offset_bytes % page_bytes:
            raise FrontendError(request, f"{where} is not aligned to its pages of {page_bytes}")
        return Region(new, fd, page_bytes)


def _overlap(start: int, size: int, other_start: int, other_size: int) -> bool:
    return start < other_start + other_size and other_start < start + size
