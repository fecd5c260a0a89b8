"""A child process that reads files of the kernel's whose reading may wait for ever.

A process's /proc/PID/io, and on newer kernels its stat, are read under a lock of that process
(exec_update_lock). execve(2) holds it while it frees the old memory and closes descriptors
(O_CLOEXEC): seconds for a process with much memory, for ever for a file of FUSE whose server does
not answer. /proc/PID/cmdline is memory of that process, whose page may come from such a server,
too. Such a wait ends at SIGKILL, and at nothing else.
"""

import contextlib
import errno
import gc
import os
import select
import signal
import socket
import struct
import time
from typing import NoReturn

from balloon_daemon.linux import jail
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.linux.libc import clone_sharing_fds

NAME = "balloond-reads"
"""The process's name in ``ps`` and ``top``."""

WITHIN_S = 0.05
"""How long a reading may take; some 0.1 ms where the processors are not busy."""

AGAIN_S, AGAIN_MOST_S = 1.0, 60.0
"""How long no file of a user's processes is read after a late reading: twice as long each time."""

IDLE_S = 3.0
"""A child that is asked nothing for so long ends: it keeps old copies of its parent's pages."""

_MOST_BYTES = 1 << 16
_ORDER, _ERROR = struct.Struct("2i"), struct.Struct("i")
"""An order: descriptor and most bytes. An answer: an errno, then what was read."""


class _Child:
    """The child, which shares this process's descriptor table.

    Raises:
        OSError: the kernel allows no process or no descriptor.
    """

    def __init__(self) -> None:
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pidfd = OwnedFd(-1)
        parent = os.getpid()
        # No signal handler may run in the child, as in ``closing_child``.
        previous = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self._pid = clone_sharing_fds()
            if self._pid == 0:
                _serve(self._theirs.fileno(), parent)
        except OSError:
            self._ours.close()
            self._theirs.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)
        try:
            self._pidfd = OwnedFd(os.pidfd_open(self._pid))
        except OSError:
            self.end()
            raise

    def read(self, fd: int, most_bytes: int) -> bytes | None:
        """The beginning of a file; None: it has ended, and the file was not read.

        Raises:
            OSError: the reading failed.
            TimeoutError: it is late; the child was not ended.
        """
        poller = select.poll()
        poller.register(self._ours, select.POLLIN)
        poller.register(self._pidfd.fileno(), select.POLLIN)
        self._ours.send(_ORDER.pack(fd, most_bytes))
        ready = [number for number, _ in poller.poll(WITHIN_S * 1000)]
        if not ready:
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        if self._ours.fileno() not in ready:
            return None
        answer = self._ours.recv(_ERROR.size + most_bytes)
        (number,) = _ERROR.unpack_from(answer)
        if number:
            raise OSError(number, os.strerror(number))
        return answer[_ERROR.size :]

    def end(self) -> None:
        """Kills it; ``is_gone`` reaps it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        for end in (self._ours, self._theirs, self._pidfd):
            end.close()

    def is_gone(self) -> bool:
        """Reaps it; False: it has not ended yet."""
        try:
            return os.waitpid(self._pid, os.WNOHANG)[0] == self._pid
        except ChildProcessError:
            return True


class ReadsApart:
    """Reads files of other users' processes in a child, and waits for it for a moment only."""

    def __init__(self) -> None:
        self._child: _Child | None = None
        self._ended: list[_Child] = []
        self._late: dict[int, tuple[float, float]] = {}
        """By user, whose process has made a reading late: until when none of its files is read,
        and for how long that is."""

    def read(self, fd: int, most_bytes: int, user: int) -> bytes:
        """The beginning of a file.

        Args:
            fd: the file.
            most_bytes: how much is read at most, up to 64 KiB.
            user: whose process the file is about.

        Raises:
            OSError: the kernel's reason, or the reading took too long, now or lately.
        """
        now_s = time.monotonic()
        until_s, for_s = self._late.get(user, (0.0, AGAIN_S / 2))
        if now_s < until_s:
            raise TimeoutError(errno.ETIMEDOUT, "a process of its user has made a reading late")
        self._ended = [child for child in self._ended if not child.is_gone()]
        try:
            for _ in range(2):
                if self._child is None:
                    self._child = _Child()
                content = self._child.read(fd, min(most_bytes, _MOST_BYTES))
                if content is not None:
                    self._late.pop(user, None)
                    return content
                self._end()  # It was idle, or somebody has killed it.
        except TimeoutError:
            self._end()
            for_s = min(2 * for_s, AGAIN_MOST_S)
            self._late[user] = now_s + for_s, for_s
            raise
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def close(self) -> None:
        """Ends the child."""
        self._end()
        self._ended = [child for child in self._ended if not child.is_gone()]

    def _end(self) -> None:
        if self._child is not None:
            self._child.end()
            self._ended.append(self._child)
            self._child = None


APART = ReadsApart()


def _serve(orders: int, parent: int) -> NoReturn:
    """Runs in the child. No other code of ours may: it would act on the parent's descriptors."""
    try:
        gc.disable()
        jail.die_with(parent, NAME)
        poller = select.poll()
        poller.register(orders, select.POLLIN)
        while poller.poll(IDLE_S * 1000):
            fd, most_bytes = _ORDER.unpack(os.read(orders, _ORDER.size))
            try:
                answer = _ERROR.pack(0) + os.pread(fd, most_bytes, 0)
            except OSError as err:
                answer = _ERROR.pack(err.errno or errno.EIO)
            os.write(orders, answer)
    finally:
        os._exit(0)
