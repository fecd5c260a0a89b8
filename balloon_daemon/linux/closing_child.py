"""A child process that closes descriptors whose close may block for ever."""

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
"""The process's name in ``ps`` and ``top``."""

MAX_ORDER_BYTES = 1 << 20
"""The longest order; longer than all numbers that a process may have."""


class ClosingChild:
    """A child that shares this process's descriptor table, and closes descriptors, one order at a
    time.

    A number stays taken until its close has begun, so it cannot mean another file by then. Only
    for a process with one thread.

    Args:
        fds: the first descriptors to close, in this order.

    Raises:
        OSError: the kernel allows no process; the descriptors are still open.
    """

    def __init__(self, fds: Sequence[int]) -> None:
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
        # Block all signals before the fork, so that the child runs without signal handlers. A
        # handler in the child would write to the pipe of the parent's event loop, as parent and
        # child share all descriptors.
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
    def takes_more(self) -> bool:
        """Whether it can get another order once it is done."""
        return self._ours.fileno() >= 0 and not self._has_ended

    def fds(self) -> list[int]:
        """Descriptors that become readable when it is done or has ended; without a pidfd perhaps
        none."""
        return [end.fileno() for end in (self._ours, self._pidfd) if end.fileno() >= 0]

    def close(self, fds: Sequence[int]) -> None:
        """Lets it close more descriptors; it must be done with its last order.

        Raises:
            OSError: it is gone, or the kernel has no memory for the order; the descriptors are
                still open.
        """
        if self._reap():
            raise ProcessLookupError("a child that closes was killed")
        os.write(self._ours.fileno(), array.array("i", fds))

    def is_done(self) -> bool:
        """Whether its last order is done; true once for each order. Reaps the child if it has
        ended.

        Its descriptors stay open until ``end``.
        """
        if self._ours.fileno() >= 0:
            with contextlib.suppress(OSError):
                if os.read(self._ours.fileno(), 1):
                    return True
        return self._reap()

    def kill(self) -> bool:
        """Kills it, only while it has nothing to do; call ``end`` once it has ended.

        Returns:
            Whether ``fds`` tell that; otherwise call ``end`` now, which waits for it.
        """
        if self._has_ended or self._pidfd.fileno() < 0:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        return True

    def end(self) -> None:
        """Kills and reaps it; only while it has nothing to do."""
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
    """Runs in the child. No other code of ours may: it would act on the parent's descriptors.

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
        # An order wakes this child. As a batch process it does not take the processor from its
        # parent then (sched(7)), which is in the middle of serving VMs.
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        while True:
            for fd in fds:
                try:
                    os.close(fd)
                except OSError:
                    continue  # The number is free whatever close(2) returns.
            if orders < 0:
                break
            os.write(orders, b".")
            fds = array.array("i", os.read(orders, MAX_ORDER_BYTES))
    finally:
        os._exit(0)
