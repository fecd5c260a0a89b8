"""The descriptors of a guest that are in the store, and their numbers there."""

import os

from balloon_daemon.handover.store import HasFileno
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.linux.libc import same_open_file


class KeptFds:
    """The descriptors of a guest that are in the store, each open file under one number.

    Attributes:
        kept: a duplicate of each by its number, so that a file sent again is recognized after the
            descriptor by which it first came was closed.
    """

    def __init__(self) -> None:
        # The number of each known descriptor, by the id() of the object that owns the descriptor.
        # A descriptor's own number would not do: the kernel reuses it after a close. An id() is
        # not reused here, because this dictionary refers to the object.
        self._known: dict[int, tuple[HasFileno, int]] = {}
        self.kept: dict[int, OwnedFd] = {}
        self._next = 1
        self._settled: tuple[set[int], int] = (set(), 0)

    def adopt(self, number: int, fd: HasFileno) -> None:
        """Notes a descriptor that is in the store already."""
        self._known[id(fd)] = (fd, number)
        self.kept.setdefault(number, _copy_of(fd))
        self._next = max(self._next, number + 1)

    def find(self, fd: HasFileno) -> int | None:
        """The number of a descriptor; None where its file has none yet."""
        known = self._known.get(id(fd))
        if known is not None:
            return known[1]
        for number, kept in self.kept.items():
            # A VMM sends several descriptors of one open file: one for each region of its memory,
            # its call eventfds twice. systemd keeps only one of them, under its first name, so use
            # the number of that one for all.
            if same_open_file(fd.fileno(), kept.fileno()):
                self._known[id(fd)] = (fd, number)
                return number
        return None

    def add(self, fd: HasFileno) -> int:
        """Gives a descriptor the next number. Raises OSError: none is free for a duplicate."""
        number, kept = self._next, _copy_of(fd)
        self._next += 1
        self._known[id(fd)], self.kept[number] = (fd, number), kept
        return number

    def drop(self, number: int) -> None:
        """Closes the duplicate of a descriptor; its number is not used again."""
        if number in self.kept:
            self.kept.pop(number).close()
        self._known = {key: each for key, each in self._known.items() if each[1] != number}

    def keep_only(self, needed: set[int]) -> None:
        """Closes the duplicates of all but these numbers, which the newest state names."""
        if (needed, len(self._known)) == self._settled:
            return
        for number in self.kept.keys() - needed:
            self.kept.pop(number).close()
        self._known = {
            key: (fd, number)
            for key, (fd, number) in self._known.items()
            if fd.fileno() >= 0 and number in needed
        }
        self._settled = needed, len(self._known)

    def clear(self) -> None:
        """Closes all duplicates."""
        for fd in self.kept.values():
            fd.close()
        self.kept.clear()
        self._known.clear()


def _copy_of(fd: HasFileno) -> OwnedFd:
    """A duplicate. That of a VMM's descriptor is closed by way of ``ForeignFds``.

    If the guest could not be saved for a while, closing the duplicate may be the file's last
    close: the guest has closed its own descriptor by then, and the store may have dropped its copy
    at any time.
    """
    return fd.duplicate() if isinstance(fd, OwnedFd) else OwnedFd(os.dup(fd.fileno()))
