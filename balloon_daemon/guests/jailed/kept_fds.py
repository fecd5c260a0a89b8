"""The descriptors of a guest that are in the store, and their numbers there."""

import os

from balloon_daemon.handover.store import HasFileno
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.linux.libc import same_open_file
from balloon_daemon.linux.memory import memory_inode


class KeptFds:
    """The descriptors of a guest that are in the store, each open file under one number.

    Attributes:
        kept: a duplicate of each descriptor, by its number in the store. With it a file that the
            VMM sends again is recognized, although the descriptor that was sent first is closed.
    """

    def __init__(self) -> None:
        # The number of each known descriptor, by the id() of the object that owns the descriptor.
        # A descriptor's own number would not do: the kernel reuses it after a close. An id() is
        # not reused here, because this dictionary refers to the object.
        self._known: dict[int, tuple[HasFileno, int]] = {}
        self.kept: dict[int, OwnedFd] = {}
        self._files: dict[int, tuple[int, int] | None] = {}
        """By number: the device and inode of a memory file; None for a file of another kind."""
        self._memory_files: dict[tuple[int, int], int] = {}
        """The number of each memory file, by device and inode. A VM may have 256 memory files:
        comparing a new file with each of them by kcmp(2) would take 1 ms."""
        self._next = 1
        self._look_at = 16

    def adopt(self, number: int, fd: HasFileno) -> None:
        """Notes a descriptor that is in the store already."""
        if number not in self.kept:
            self._keep(number, fd)
        self._known[id(fd)] = (fd, number)
        self._next = max(self._next, number + 1)

    def find(self, fd: HasFileno) -> int | None:
        """The number of a descriptor; None where its file has no number yet."""
        known = self._known.get(id(fd))
        if known is not None:
            return known[1]
        # A VMM sends several descriptors of the same open file: of a memory file one for each
        # region, of each call eventfd two. systemd keeps an open file only once, under the first
        # name. So all descriptors of an open file get the number of the first descriptor.
        number = self._find_file(fd.fileno())
        if number is not None:
            self._known[id(fd)] = (fd, number)
        return number

    def _find_file(self, fd: int) -> int | None:
        file = memory_inode(fd)
        if file is not None:
            return self._memory_files.get(file)
        others = (number for number, inode in self._files.items() if inode is None)
        same = (n for n in others if same_open_file(fd, self.kept[n].fileno()))
        return next(same, None)

    def add(self, fd: HasFileno) -> int:
        """Gives a descriptor the next number. Raises OSError: it cannot be duplicated, as no
        descriptor of this process is free."""
        number = self._next
        self._keep(number, fd)
        self._next += 1
        self._known[id(fd)] = (fd, number)
        return number

    def _keep(self, number: int, fd: HasFileno) -> None:
        copy = self.kept[number] = _copy_of(fd)
        file = self._files[number] = memory_inode(copy.fileno())
        if file is not None:
            self._memory_files[file] = number

    def drop(self, number: int) -> None:
        """Closes the duplicate of a descriptor; its number is not used again."""
        self.keep_only(self.kept.keys() - {number})

    def keep_only(self, needed: set[int]) -> None:
        """Closes the duplicates of all but these numbers, which the newest state names."""
        gone = self.kept.keys() - needed
        for number in gone:
            self.kept.pop(number).close()
            del self._files[number]
        if gone:
            self._memory_files = {file: number for number, file in self._files.items() if file}
        if gone or len(self._known) >= self._look_at:
            self._known = {
                key: known
                for key, known in self._known.items()
                if known[0].fileno() >= 0 and known[1] in needed
            }
            # Search ``_known`` for closed descriptors again only when it has twice as many
            # entries: a guest is saved after each region that its VMM adds, of hundreds perhaps,
            # and a search after each would be slow.
            self._look_at = 2 * len(self._known) + 16

    def clear(self) -> None:
        """Closes all duplicates."""
        self.keep_only(set())
        self._known.clear()


def _copy_of(fd: HasFileno) -> OwnedFd:
    """A duplicate of a descriptor. One of a VMM's descriptor is closed by way of ``ForeignFds``,
    that is by a child process: its close may be the file's last close, which may block.

    Its close is the last if the guest could not be saved for a while: the back-end has closed its
    own descriptor by then, and the store may have dropped its copy at any time.
    """
    return fd.duplicate() if isinstance(fd, OwnedFd) else OwnedFd(os.dup(fd.fileno()))
