"""A child process that reads files in /proc/PID, because a read may wait for process PID.

The kernel reads some files in /proc/PID under a lock of that process, or from its memory: io, on
later kernels stat, and cmdline. Whoever controls the process can keep their readers waiting; only
SIGKILL ends the wait. Other files take long to make: status lists all of the process's
supplementary groups, and 65,536 of them take 5 ms. So a child reads them, the controller waits for
the child for a moment, and kills a child that is late.
"""

import contextlib
import errno
import gc
import mmap
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Callable
from typing import NoReturn

from balloon_daemon.linux import jail
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.linux.figures import lockable
from balloon_daemon.linux.file_access import Identity, as_oneself, as_user
from balloon_daemon.linux.libc import fork_sharing_fds
from balloon_daemon.linux.user_time import UserTime

NAME = "balloond-reads"
"""The process's name in ``ps`` and ``top``."""

WITHIN_S = 0.05
"""How long a reading may take; it takes some 0.1 ms where the processors are not busy."""

BUSY_TIMES = 9
"""How many further times ``WITHIN_S`` to wait for a child that has no processor, as on a busy
host, and so does not read yet: the process whose file it is to read does not cause that delay."""

AGAIN_S, AGAIN_MOST_S = 1.0, 60.0
"""How long no file of a process is read after a late reading of one: at first, and at most. The
time doubles with each further late reading."""

QUICK_S = 0.0005
"""A reading that takes the child more seconds of processor time than this is charged to the user
of the process; most readings take some 0.02 ms."""

LATE_S, REGAINED = 0.25, 1 / 500
"""How many seconds late readings, and readings that are not quick, may take for the processes of
one user, before the controller reads no more files of that user's processes; and how much of that
allowance, in seconds, comes back in each second."""

IDLE_S = 3.0
"""A child that has read nothing for so long is ended: while it lives, each page that its parent
has written since the fork exists twice."""

MOST_BYTES = 1 << 16
"""The longest reading, in bytes."""

_MOST_NOTED = 1024
_ORDER, _ANSWER = struct.Struct("2i2q"), struct.Struct("id")
"""An order: descriptor, most bytes, and the user and group as whom to read, both -1 for this
process's own. An answer: an errno, the seconds of processor time that the reading took, then what
was read."""
_OWN = -1, -1


class _Child:
    """The child, which shares this process's table of descriptors.

    Attributes:
        took_s: how much processor time the last answered reading took.

    Raises:
        OSError: the kernel allows no process or no descriptor.
    """

    def __init__(self) -> None:
        self.took_s = 0.0
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pidfd = OwnedFd(-1)
        # Shared with the child, which notes here whether it reads. Its state in /proc/PID/stat
        # would tell more, but the lookup of that file may wait for ever.
        self._reading = mmap.mmap(-1, mmap.PAGESIZE)
        parent = os.getpid()
        try:
            self._pid = fork_sharing_fds(
                lambda: _serve(self._theirs.fileno(), parent, self._reading)
            )
        except OSError:
            self._close()
            raise
        try:
            self._pidfd = lockable(os.pidfd_open(self._pid))
        except OSError:
            self.end()  # The child has no order, and so ends at once.
            os.waitpid(self._pid, 0)
            self._close()
            raise

    def read(self, fd: int, most_bytes: int, identity: Identity | None) -> bytes | None:
        """The beginning of a file; None: the child has ended, and the file was not read.

        Raises:
            OSError: the reading failed.
            TimeoutError: the reading is late; the child still waits.
        """
        poller = select.poll()
        poller.register(self._ours, select.POLLIN)
        poller.register(self._pidfd.fileno(), select.POLLIN)
        self._reading[0] = 0
        self._ours.send(_ORDER.pack(fd, most_bytes, *(identity or _OWN)))
        for _ in range(2 * (1 + BUSY_TIMES)):
            # If the child is in read(2) both before and after this wait, that read waits, and the
            # loop ends. If not, the child may have got no processor: wait again.
            was_reading = self._reading[0]
            ready = poller.poll(WITHIN_S / 2 * 1000)
            if ready or (was_reading and self._reading[0]):
                break
        if not ready:
            raise _late("it is read too slowly")
        if self._ours.fileno() not in [number for number, _ in ready]:
            return None
        answer = self._ours.recv(_ANSWER.size + most_bytes)
        number, self.took_s = _ANSWER.unpack_from(answer)
        if number:
            raise OSError(number, os.strerror(number))
        return answer[_ANSWER.size :]

    def end(self) -> None:
        """Kills the child; ``is_gone`` reaps it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)

    def is_gone(self) -> bool:
        """Reaps the child; False: it has not ended yet."""
        try:
            if os.waitpid(self._pid, os.WNOHANG)[0] != self._pid:
                return False
        except ChildProcessError:
            pass
        # Close the sockets only after the child's end: both processes use one descriptor table,
        # and a child about to answer would write to whichever file has the number by then.
        self._close()
        return True

    def _close(self) -> None:
        for end in (self._ours, self._theirs, self._pidfd, self._reading):
            end.close()


class ReadsApart:
    """Reads files of VMMs' processes in a child, and waits for the child for a moment only.

    Attributes:
        later: calls a function after so many seconds, to end an idle child; None: an idle child
            stays until ``close``.
    """

    def __init__(self) -> None:
        self.later: Callable[[float, Callable[[], None]], object] | None = None
        self._child: _Child | None = None
        self._ended: list[_Child] = []
        self._is_due = False
        self._read_at_s = 0.0
        self._pauses: dict[tuple[int, int], tuple[float, float]] = {}
        """By process and user, where a reading was late: until when none of its files is read, and
        for how long that is."""
        self._waited = UserTime(LATE_S, REGAINED)

    def read(
        self, fd: int, most_bytes: int, pid: int, user: int, identity: Identity | None = None
    ) -> bytes:
        """The beginning of a file.

        Args:
            fd: the file.
            most_bytes: how much is read at most, up to ``MOST_BYTES``.
            pid: the process that the file is about.
            user: that process's user.
            identity: the user and group as whom the file is read; None: this process's own.

        Raises:
            TimeoutError: this reading took too long, or earlier readings of this process or of its
                user did.
            OSError: the kernel's reason, or the kernel allows no child.
        """
        now_s = time.monotonic()
        until_s, for_s = self._pauses.get((pid, user), (0.0, AGAIN_S / 2))
        if now_s < until_s:
            raise _late("it was read too slowly lately")
        if self._waited.is_used_up(user, now_s):
            raise _late("files of its user's processes are read too slowly")
        self._read_at_s = now_s
        try:
            content, took_s = self._read(fd, min(most_bytes, MOST_BYTES), identity)
        except TimeoutError:
            self._end()
            for_s = min(2 * for_s, AGAIN_MOST_S)
            self._pauses[pid, user] = (now_s + for_s, for_s)
            if len(self._pauses) > _MOST_NOTED:
                self._pauses.pop(next(iter(self._pauses)))
            self._waited.take(user, WITHIN_S, now_s)
            raise
        self._pauses.pop((pid, user), None)
        if took_s > QUICK_S:
            self._waited.take(user, took_s, now_s)
        return content

    def close(self) -> bool:
        """Ends the child, for good or until the next reading; waits for nothing.

        Returns:
            Whether all children are reaped; else call it again.
        """
        self.later = None
        self._end()
        self._reap()
        return not self._ended

    def _read(self, fd: int, most_bytes: int, identity: Identity | None) -> tuple[bytes, float]:
        for _ in range(2):
            if self._child is None:
                self._child = _Child()
                self._look_later()
            content = self._child.read(fd, most_bytes, identity)
            if content is not None:
                return content, self._child.took_s
            self._end()  # Somebody has killed the child.
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def _look_later(self) -> None:
        if self.later is not None and not self._is_due:
            self._is_due = True
            self.later(IDLE_S, self._look)

    def _look(self) -> None:
        self._is_due = False
        if time.monotonic() - self._read_at_s >= IDLE_S:
            self._end()
        self._reap()
        if self._child is not None or self._ended:
            self._look_later()

    def _end(self) -> None:
        if self._child is not None:
            self._child.end()
            self._ended.append(self._child)
            self._child = None
            self._look_later()

    def _reap(self) -> None:
        self._ended = [child for child in self._ended if not child.is_gone()]


APART = ReadsApart()
"""The reader that all of this process uses."""


def _late(why: str) -> TimeoutError:
    return TimeoutError(errno.ETIMEDOUT, why)


def _serve(orders: int, parent: int, reading: mmap.mmap) -> NoReturn:
    """The only code of this program that may run in the child: it shares the parent's table, so
    any descriptor that it opened or closed would be opened or closed in the parent."""
    try:
        gc.disable()
        # Have the kernel kill this child when its parent dies. This child has the parent's table
        # of descriptors: if it outlived the parent, all descriptors in that table would stay open.
        as_oneself()  # The parent may have forked while it opened files for another user.
        jail.die_with(parent, NAME)
        while order := os.read(orders, _ORDER.size):
            fd, most_bytes, uid, gid = _ORDER.unpack(order)
            identity = None if (uid, gid) == _OWN else (uid, gid)
            number, content, began_s = 0, b"", time.thread_time()
            try:
                with as_user(identity):
                    jail.end_with(parent)
                    reading[0] = 1
                    content = os.pread(fd, most_bytes, 0)
                    reading[0] = 0
            except OSError as err:
                reading[0] = 0
                number = err.errno or errno.EIO
            took_s = time.thread_time() - began_s
            jail.end_with(parent)
            os.write(orders, _ANSWER.pack(number, took_s) + content)
    finally:
        os._exit(0)
