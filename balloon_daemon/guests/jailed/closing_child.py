"""A child that closes what may take for ever to close."""

import array
import contextlib
import gc
import os
import signal
import socket
from collections.abc import Sequence
from typing import NoReturn

from balloon_daemon.linux import jail
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.linux.libc import clone_sharing_fds

NAME = "balloond-closes"
"""For ``ps`` and ``top``."""

MAX_ORDER_BYTES = 1 << 20
"""More numbers than a process may have."""


class ClosingChild:
    """A child that shares our descriptors and closes those that it is told; one order at a time.

    A number stays taken until its close has begun, so it can be no other file's by then. For a
    process with one thread.

    Args:
        fds: what to close first, in this order.

    Raises:
        OSError: no process to be had; they are open as before.
    """

    def __init__(self, fds: Sequence[int]) -> None:
        self._ours, self._theirs = OwnedFd(-1), OwnedFd(-1)
        self._pidfd = OwnedFd(-1)
        self._has_ended = False
        # No descriptor left: it closes this, which may give some back, and ends.
        with contextlib.suppress(OSError):
            pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._ours, self._theirs = (OwnedFd(end.detach()) for end in pair)
            os.set_blocking(self._ours.fileno(), False)
        parent = os.getpid()
        # A handler would run in the child too, and tell our event loop, whose pipe they share.
        previous = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self.pid = clone_sharing_fds()
            if self.pid == 0:
                _close_all(fds, parent, self._theirs.fileno())
        except OSError:
            self._hang_up()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)
        with contextlib.suppress(OSError):
            self._pidfd = OwnedFd(os.pidfd_open(self.pid))

    @property
    def lives_on(self) -> bool:
        """Whether it can be given more to close once it is done."""
        return self._ours.fileno() >= 0 and not self._has_ended

    def fds(self) -> list[int]:
        """Readable when it is done, or has ended. Without a pidfd there may be none of them."""
        return [end.fileno() for end in (self._ours, self._pidfd) if end.fileno() >= 0]

    def close(self, fds: Sequence[int]) -> None:
        """Has it close more; it must be done with what it had.

        Raises:
            OSError: it is gone, or the kernel has no memory for so many; they are open as before.
        """
        if self._reap():
            raise ProcessLookupError("a child that closes was killed")
        os.write(self._ours.fileno(), array.array("i", fds))

    def is_done(self) -> bool:
        """Whether all that it was told is closed; once for each order. It is reaped if it ended.

        Its descriptors stay open until ``end``.
        """
        if self._ours.fileno() >= 0:
            with contextlib.suppress(OSError):
                if os.read(self._ours.fileno(), 1):
                    return True
        return self._reap()

    def end(self) -> None:
        """Ends it, where it has nothing to do."""
        if not self._has_ended:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
        self._hang_up()

    def _reap(self) -> bool:
        if not self._has_ended:
            try:
                self._has_ended = os.waitpid(self.pid, os.WNOHANG)[0] == self.pid
            except ChildProcessError:
                self._has_ended = True
        return self._has_ended

    def _hang_up(self) -> None:
        # Both ends are ours: the child has the same table.
        self._ours.close()
        self._theirs.close()
        self._pidfd.close()


def _close_all(fds: Sequence[int], parent: int, orders: int) -> NoReturn:
    """Runs in the child. Nothing else of ours may: it would act on the parent's descriptors.

    Args:
        fds: what to close first.
        parent: our parent's process id.
        orders: where more comes from; -1: from nowhere.
    """
    try:
        gc.disable()
        # It has all of our descriptors: as long as it lingers, those of a parent that was killed.
        jail.die_with(parent, NAME)
        while True:
            for fd in fds:
                try:
                    os.close(fd)
                except OSError:
                    continue  # The number is free, whatever the file had to say.
            if orders < 0:
                break
            os.write(orders, b".")
            fds = array.array("i", os.read(orders, MAX_ORDER_BYTES))
    finally:
        os._exit(0)
