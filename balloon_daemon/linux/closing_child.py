"""A child process that closes descriptors whose close may block for ever."""

import array
import contextlib
import gc
import os
import signal
import socket
from collections.abc import Callable, Sequence
from typing import NoReturn

from balloon_daemon.linux import jail
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.linux.libc import fork_sharing_fds

NAME = "balloond-closes"
"""The process's name in ``ps`` and ``top``."""

MAX_ORDER_BYTES = 1 << 20
"""The longest order, in bytes: each descriptor to close takes four."""


class ClosingChild:
    """A child that shares this process's descriptor table, and closes descriptors, one order at a
    time.

    As both processes use one table, a descriptor's number cannot be given to another file before
    the child's close(2) of it begins. Only for a process with one thread.

    Args:
        fds: the first descriptors to close, in this order.
        own: makes the object that owns and later closes the child's pidfd; that close takes long
            if somebody has locked the pidfd (``figures.lockable``).

    Raises:
        OSError: the kernel allows no process; the descriptors are still open.
    """

    def __init__(self, fds: Sequence[int], own: Callable[[int], OwnedFd] = OwnedFd) -> None:
        self._ours, self._theirs = OwnedFd(-1), OwnedFd(-1)
        self._pidfd = OwnedFd(-1)
        self._has_ended = False
        # If no descriptor is free for the socketpair, fork the child without it. That child gets
        # no further orders: it closes ``fds``, which may free some descriptors, and ends.
        with contextlib.suppress(OSError):
            pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._ours, self._theirs = (OwnedFd(end.detach()) for end in pair)
            os.set_blocking(self._ours.fileno(), False)
        parent = os.getpid()
        try:
            self.pid = fork_sharing_fds(lambda: _close_all(fds, parent, self._theirs.fileno()))
        except OSError:
            self._hang_up()
            raise
        with contextlib.suppress(OSError):
            self._pidfd = own(os.pidfd_open(self.pid))

    @property
    def takes_more(self) -> bool:
        """Whether the child can get another order once its present one is done."""
        return self._ours.fileno() >= 0 and not self._has_ended

    def fds(self) -> list[int]:
        """Descriptors that become readable when the child has done its order or has ended; empty
        where no descriptor was free for them."""
        return [end.fileno() for end in (self._ours, self._pidfd) if end.fileno() >= 0]

    def close(self, fds: Sequence[int]) -> None:
        """Orders the child to close more descriptors; its last order must be done.

        Raises:
            OSError: the child is gone, or the kernel has no memory for the order; the descriptors
                are still open.
        """
        if self._reap():
            raise ProcessLookupError("a child that closes was killed")
        os.write(self._ours.fileno(), array.array("i", fds))

    def is_done(self) -> bool:
        """Whether the child's last order is done, or the child has ended; True once for each
        order, as the child's answer is read from the socket. Reaps a child that has ended.

        The descriptors in ``fds()`` stay open until ``end``.
        """
        if self._ours.fileno() >= 0:
            with contextlib.suppress(OSError):
                if os.read(self._ours.fileno(), 1):
                    return True
        return self._reap()

    def kill(self) -> bool:
        """Kills the child; only while it has no order.

        Returns:
            True: ``fds()`` become readable at the child's end; call ``end`` then. False: call
            ``end`` at once, which waits for the child's end.
        """
        if self._has_ended or self._pidfd.fileno() < 0:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        return True

    def end(self) -> None:
        """Kills and reaps the child; only while it has no order."""
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
        # Close the child's end of the socketpair here too: the child uses this process's table of
        # descriptors, so it has no copy of its own to close.
        self._ours.close()
        self._theirs.close()
        self._pidfd.close()


def _close_all(fds: Sequence[int], parent: int, orders: int) -> NoReturn:
    """The only code of this program that may run in the child: it shares the parent's table, so
    any other descriptor that it opened or closed would be opened or closed in the parent.

    Args:
        fds: the first descriptors to close.
        parent: the parent's process id.
        orders: the socket from which further orders come; -1: there is none.
    """
    try:
        gc.disable()
        # Have the kernel kill this child when its parent dies. This child has the parent's table
        # of descriptors: if it outlived the parent, all descriptors in that table would stay open.
        jail.die_with(parent, NAME)
        # Set SCHED_BATCH (sched(7)): when an order wakes this child, it then does not preempt its
        # parent, which is in the middle of serving VMs.
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        while True:
            for fd in fds:
                try:
                    os.close(fd)
                except OSError:
                    continue  # Linux frees the descriptor's number even if close(2) fails.
            if orders < 0:
                break
            os.write(orders, b".")
            fds = array.array("i", os.read(orders, MAX_ORDER_BYTES))
    finally:
        os._exit(0)
