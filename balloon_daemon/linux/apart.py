"""A child of ours that never closes what others opened, though it was forked with it.

Any close of a file of FUSE asks whoever serves it (FUSE_FLUSH) and waits for the answer, also
where the file stays open elsewhere. A child that was forked with such a file and closes it, by
itself or by exec, would hang before it had begun. So it is forked with our very table of
descriptors (clone(2), CLONE_FILES) and then asks for one of its own that has the lowest numbers
alone (close_range(2), CLOSE_RANGE_UNSHARE): what is not copied is not closed. The kernel copies 64
at the least; so none of those 64 is ever to be somebody else's.
"""

import contextlib
import ctypes
import gc
import os
import resource
import signal
from collections.abc import Callable, Mapping
from typing import NoReturn

from balloon_daemon.linux.libc import LIBC, clone_sharing_fds

LOW = 64
"""BITS_PER_LONG and NR_OPEN_DEFAULT: what close_range(2) copies at the least (fs/file.c)."""

_WORTH_IT = 4 * LOW
"""Whoever may have no more than so many descriptors open goes without."""

_SYS_CLOSE_RANGE = 436
_CLOSE_RANGE_UNSHARE = 1 << 1  # linux/close_range.h
_CLONE_FILES = 0x400  # linux/sched.h
_CLOSE_ALL_HIGH = tuple(
    map(ctypes.c_ulong, (_SYS_CLOSE_RANGE, LOW, 0xFFFF_FFFF, _CLOSE_RANGE_UNSHARE))
)


class LowNumbers:
    """Occupies all numbers below ``LOW``, so that nothing that comes later gets one of them.

    To be made before anything of others' can come. All of them are of one open file.
    """

    def __init__(self) -> None:
        self._fds: list[int] = []
        self._duplicate = -1
        self.fill()

    def fill(self) -> None:
        """Occupies those that have become free, before others' come there."""
        if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < _WORTH_IT:
            return
        with contextlib.suppress(OSError):
            fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            while fd < LOW:
                self._fds.append(fd)
                fd = os.dup(fd)
            os.close(fd)

    def duplicate(self, fd: int) -> int:
        """Another descriptor of ``fd``, below ``LOW``: a child that is forked here has it too.

        There is one at a time, until ``close_duplicate``.
        """
        self._duplicate = (
            os.dup2(fd, self._fds[-1], inheritable=False) if self._fds else os.dup(fd)
        )
        return self._duplicate

    def close_duplicate(self) -> None:
        """Closes the duplicate in this process; nothing to do where there is none."""
        if self._duplicate >= 0:
            if self._fds:
                os.dup2(self._fds[0], self._duplicate, inheritable=False)
            else:
                os.close(self._duplicate)
            self._duplicate = -1

    def close(self) -> None:
        """Frees them all."""
        self.close_duplicate()
        for fd in self._fds:
            os.close(fd)
        self._fds = []

    def fork(self, child: Callable[[], NoReturn]) -> int:
        """Forks a process that has, of our descriptors, those below ``LOW`` alone.

        Of memory it has a copy, as after any fork. Before Linux 5.9, and where no numbers are
        occupied, it has all descriptors.

        Args:
            child: what it is to do, with all signals blocked and no garbage collected.

        Returns:
            Its process id.

        Raises:
            OSError: no process to be had.
        """
        previous = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = clone_sharing_fds()
            if pid == 0:
                _leave_the_table(child, low_alone=bool(self._fds))
            return pid
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)

    def exec(self, command: list[str], environment: Mapping[str, str], keep: int) -> int:
        """Starts a program in a process that is forked like that.

        Args:
            command: the program's path and its arguments.
            environment: all that it is to have.
            keep: a descriptor for it, besides the standard streams.

        Returns:
            The process id; that the program cannot be run only its end says.

        Raises:
            OSError: no process to be had.
        """

        def child() -> NoReturn:
            os.chdir("/")
            os.set_inheritable(keep, True)
            os.execve(command[0], command, environment)

        return self.fork(child)


def _leave_the_table(child: Callable[[], NoReturn], *, low_alone: bool) -> NoReturn:
    try:
        # Nothing may be closed before, not by a finalizer either: it would be our parent's.
        gc.disable()
        alone = low_alone and LIBC.syscall(*_CLOSE_ALL_HIGH) == 0
        # Else a copy of all of it.
        if not alone and LIBC.unshare(_CLONE_FILES) != 0:
            os._exit(1)
        child()
    finally:
        os._exit(1)
