"""Forks a child that never closes descriptors that came from VMMs.

Any close of a file of FUSE sends its server FUSE_FLUSH and waits for the answer, even where the
file stays open elsewhere. A forked child that closes such a file, by close(2) or by exec, would
hang before it had begun. So the child is cloned with the parent's own descriptor table (clone(2),
CLONE_FILES), and then asks for a table of its own with the lowest numbers only (close_range(2),
CLOSE_RANGE_UNSHARE): the kernel does not copy the others and so does not close them. It copies at
least 64 numbers; so none of the lowest 64 may ever be a VMM's descriptor.
"""

import contextlib
import ctypes
import gc
import os
import resource
import socket
from collections.abc import Callable, Mapping
from typing import NoReturn

from balloon_daemon.linux.libc import LIBC, fork_sharing_fds

LOW = 64
"""A child's close_range(2) with CLOSE_RANGE_UNSHARE copies at least the descriptors below this
number into the child's own table (fs/file.c: NR_OPEN_DEFAULT, which is BITS_PER_LONG)."""

_WORTH_IT = 4 * LOW
"""With a lower limit of open files (RLIMIT_NOFILE) than this, the low numbers are not reserved:
they would be more than a quarter of all."""

_SYS_CLOSE_RANGE = 436
_CLOSE_RANGE_UNSHARE = 1 << 1  # linux/close_range.h
_CLONE_FILES = 0x400  # linux/sched.h
_CLOSE_ALL_HIGH = tuple(
    map(ctypes.c_ulong, (_SYS_CLOSE_RANGE, LOW, 0xFFFF_FFFF, _CLOSE_RANGE_UNSHARE))
)


class LowNumbers:
    """Occupies all free descriptor numbers below ``LOW``, so that no later descriptor gets one.

    Must be made before any descriptor of a VMM arrives. All occupied numbers refer to one open
    file.
    """

    def __init__(self) -> None:
        self._fds: list[int] = []
        self._duplicate = -1
        self.fill()

    def fill(self) -> None:
        """Occupies low numbers that have become free, before a VMM's descriptor gets one."""
        if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < _WORTH_IT:
            return
        with contextlib.suppress(OSError):
            # Occupy the numbers with a socket, because no other process can lock it. Any user
            # could put so many locks on /dev/null that each close of it takes long
            # (``linux/figures.py``), and a device's start would wait for these closes.
            fd = socket.socket(socket.AF_UNIX).detach()
            while fd < LOW:
                self._fds.append(fd)
                fd = os.dup(fd)
            os.close(fd)

    def share(self) -> "LowNumbers":
        """Moves two of the numbers into another object, which can then start programs with a
        ``duplicate`` of its own."""
        shared = LowNumbers.__new__(LowNumbers)
        shared._fds, self._fds = self._fds[:2], self._fds[2:]
        shared._duplicate = -1
        return shared

    def duplicate(self, fd: int) -> int:
        """A duplicate of ``fd`` below ``LOW``, which a child forked here inherits.

        There is at most one, until ``close_duplicate``.
        """
        self._duplicate = (
            os.dup2(fd, self._fds[-1], inheritable=False) if self._fds else os.dup(fd)
        )
        return self._duplicate

    def close_duplicate(self) -> None:
        """Closes the duplicate in this process, if there is one."""
        if self._duplicate >= 0:
            if len(self._fds) > 1:
                os.dup2(self._fds[0], self._duplicate, inheritable=False)
            else:
                # The duplicate has the only low number of this object, so no other number refers
                # to the socket with which to occupy it again. Occupy all free low numbers anew.
                os.close(self._duplicate)
                self._fds.clear()
                self.fill()
            self._duplicate = -1

    def close(self) -> None:
        """Frees all occupied numbers."""
        self.close_duplicate()
        for fd in self._fds:
            os.close(fd)
        self._fds = []

    def fork(self, child: Callable[[], NoReturn]) -> int:
        """Forks a process that has only those of this process's descriptors that are below
        ``LOW``.

        Memory is copied as by any fork. Before Linux 5.9, and where no numbers are occupied, the
        child has all descriptors.

        Args:
            child: runs in the child, with all signals blocked and the garbage collector off.

        Returns:
            The child's process id.

        Raises:
            OSError: the kernel allows no further process.
        """
        return fork_sharing_fds(lambda: _leave_the_table(child, low_alone=bool(self._fds)))

    def exec(self, command: list[str], environment: Mapping[str, str], keep: int) -> int:
        """Starts a program in a process forked by ``fork``.

        Args:
            command: the program's path and its arguments.
            environment: the program's whole environment.
            keep: a descriptor that the program gets besides the standard streams.

        Returns:
            The process id. If the program cannot be run, the process ends; nothing else tells it.

        Raises:
            OSError: the kernel allows no further process.
        """

        def child() -> NoReturn:
            os.chdir("/")
            os.set_inheritable(keep, True)
            os.execve(command[0], command, environment)

        return self.fork(child)


def _leave_the_table(child: Callable[[], NoReturn], *, low_alone: bool) -> NoReturn:
    # This process still shares its parent's table of descriptors. Turn the garbage collector off:
    # a finalizer that it runs could close a descriptor, which would be closed in the parent too.
    gc.disable()
    alone = low_alone and LIBC.syscall(*_CLOSE_ALL_HIGH) == 0
    # Use unshare(2) where the kernel lacks close_range(2), or where no low numbers are occupied.
    # It copies the whole table: the child then has all of the parent's descriptors.
    if not alone and LIBC.unshare(_CLONE_FILES) != 0:
        os._exit(1)
    child()
