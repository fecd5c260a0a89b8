"""A child process that tells how many blocks another process's open files occupy.

It has a descriptor table of its own, like an ``AskedChild``: even while one of its lookups waits
for ever, it keeps no file of the controller's open. Its orders and answers are as short as those
of the child that reads (``reading_child.py``), as the controller waits for them.
"""

import contextlib
import errno
import os
import select
import signal
import socket
import struct
from typing import NoReturn

from balloon_daemon.linux import jail
from balloon_daemon.linux.apart import LowNumbers
from balloon_daemon.linux.process_lookups import blocks_in

NAME = "balloond-sizes"
"""The process's name in ``ps`` and ``top``."""

_PID, _ANSWER = struct.Struct("i"), struct.Struct("q")
"""An order is a process's number and the file's path in /proc/PID/fd. An answer is the number of
blocks, -1 where it is unknown; the child sends one before the first order, when it has begun."""

_MOST_BYTES = 256
_UNKNOWN = -1


class MeasuringChild:
    """A child that measures one file at a time.

    Args:
        low: forks the child, which inherits no descriptor that came from a VMM; must fork no other
            child before ``answer`` has returned once, or ``end`` was called.

    Raises:
        OSError: the kernel allows no process or no descriptor.
    """

    def __init__(self, low: LowNumbers) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._low: LowNumbers | None = low
        self._poller = select.poll()
        self._poller.register(self._ours, select.POLLIN)
        parent = os.getpid()
        try:
            with theirs:
                fd = low.duplicate(theirs.fileno())
                self._pid = low.fork(lambda: _serve(fd, parent))
        except OSError:
            self._ours.close()
            low.close_duplicate()
            raise

    def order(self, pid: int, path: str) -> None:
        """Orders the child to measure a file; its last order must be answered.

        Args:
            pid: the process that has the file open.
            path: the file's path in /proc/PID/fd.

        Raises:
            OSError: the child has ended.
        """
        self._ours.send(_PID.pack(pid) + os.fsencode(path), socket.MSG_NOSIGNAL)

    def answer(self, within_s: float) -> int | None:
        """How many blocks of 512 bytes the file occupies; None: unknown. The first answer says
        only that the child has begun.

        Raises:
            TimeoutError: the answer does not come in time.
            OSError: the child has ended.
        """
        if not self._poller.poll(within_s * 1000):
            raise TimeoutError
        packet = self._ours.recv(_ANSWER.size)
        if not packet:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        self._began()
        (blocks,) = _ANSWER.unpack(packet)
        return None if blocks == _UNKNOWN else blocks

    def end(self) -> None:
        """Kills the child; ``is_gone`` reaps it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        self._ours.close()
        self._began()

    def is_gone(self) -> bool:
        """Reaps the child; False: it has not ended yet, because a lookup in the kernel still
        waits."""
        try:
            return os.waitpid(self._pid, os.WNOHANG)[0] == self._pid
        except ChildProcessError:
            return True

    def _began(self) -> None:
        # Close the duplicate of the child's end of the socket only now. A child that has not begun
        # shares this process's table of descriptors, so an earlier close would close its end, too.
        if self._low is not None:
            self._low.close_duplicate()
            self._low = None


def _serve(fd: int, parent: int) -> NoReturn:
    """Runs in the child: measures until the controller is gone."""
    try:
        jail.die_with(parent, NAME)
        # Close all inherited descriptors but that of the orders: a copy of a VMM's connection
        # would keep the connection open while this child waits.
        os.closerange(3, fd)
        os.closerange(fd + 1, os.sysconf("SC_OPEN_MAX"))
        os.write(fd, _ANSWER.pack(_UNKNOWN))
        while order := os.read(fd, _MOST_BYTES):
            (pid,) = _PID.unpack_from(order)
            blocks = blocks_in(pid, os.fsdecode(order[_PID.size :]))
            # Ask for the parent-death signal again: Linux clears it whenever a process looks at
            # files for another user.
            jail.end_with(parent)
            os.write(fd, _ANSWER.pack(_UNKNOWN if blocks is None else blocks))
    finally:
        os._exit(0)
