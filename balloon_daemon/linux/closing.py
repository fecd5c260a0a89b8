"""Closing what others opened: close(2) of it may take for ever, so a child does it.

The last close of a TCP socket may linger for as long as its owner likes (socket(7), SO_LINGER),
any close of a file of FUSE asks whoever serves it (FUSE_FLUSH), the last one of a memory file
frees it, a second for some 5 GiB, and that of a Unix socket does all of this to the descriptors
that wait in its queue. A process that serves others must not do any of it itself. A child that
shares our descriptors (clone(2), CLONE_FILES) can: a number is free as soon as its close has
begun, and only the child waits for the close's end.
"""

import fcntl
import gc
import os
import signal
import socket
from collections.abc import Callable, Sequence
from enum import Enum
from typing import NoReturn

from balloon_daemon.linux import jail
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.linux.libc import clone_sharing_fds, socket_domain
from balloon_daemon.linux.memory import F_GET_SEALS

NAME = "balloond-closes"
"""For ``ps`` and ``top``."""

MAX_HANGING = 16
"""Children at a time that close what may never end. An enemy can make one hang with each of its
connections; what it sends beyond that waits, and costs nothing but its numbers."""

FIRST_LOOK_S = 0.01
LAST_LOOK_S = 1.0
"""When to look for the end of a child: soon at first, then less and less often."""

Later = Callable[[float, Callable[[], None]], object]
"""Calls a function after so many seconds."""


class FdKind(Enum):
    """What a descriptor is of, as far as it matters; the words are for the log."""

    EVENTFD = "eventfd"
    UNIX_SOCKET = "Unix socket"
    MEMORY = "memory file"
    OTHER = "other"


def fd_kind(fd: int) -> FdKind:
    """Tells what a descriptor is of without asking its file, which may never answer.

    Its name (proc(5), /proc/PID/fd) is the kernel's own, and no file of a file system can have one
    without a slash.
    """
    try:
        name = os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return FdKind.OTHER
    if name == "anon_inode:[eventfd]":
        return FdKind.EVENTFD
    if name.startswith("socket:["):
        unix = socket_domain(fd) == socket.AF_UNIX
        return FdKind.UNIX_SOCKET if unix else FdKind.OTHER
    try:
        # Answered by shmem and hugetlbfs alone, and by the kernel itself.
        fcntl.fcntl(fd, F_GET_SEALS)
    except OSError:
        return FdKind.OTHER
    return FdKind.MEMORY


class Closer:
    """Closes what others opened, in children.

    Args:
        later: of the event loop.
    """

    def __init__(self, later: Later) -> None:
        self._later = later
        # Numbers: as objects, what is left at our end would be closed by its finalizer after all.
        self._waiting: list[list[int]] = []
        self._children: set[int] = set()
        self._look_s = 0.0

    def close(self, fds: Sequence[int]) -> None:
        """Closes one peer's descriptors, soon; returns at once.

        One child for all of them, memory first: should one hang, it holds up none but that peer's.
        """
        if fds:
            self._waiting.append(sorted(fds, key=lambda fd: fd_kind(fd) is not FdKind.MEMORY))
            self._work()

    def _work(self) -> None:
        """Starts what can be started; comes again while there is anything left to do."""
        idle = self._look_s == 0.0
        waiting, self._waiting = self._waiting, []
        for fds in waiting:
            now = fds
            if len(self._children) >= MAX_HANGING:
                # Freed it must be, and frees in the end.
                now = [fd for fd in fds if fd_kind(fd) is FdKind.MEMORY]
            if now and not self._start(now):
                now = []
            if len(now) < len(fds):
                self._waiting.append(fds[len(now) :])
        if idle and (self._children or self._waiting):
            self._look_s = FIRST_LOOK_S
            self._later(self._look_s, self._look)

    def _start(self, fds: list[int]) -> bool:
        try:
            self._children.add(close_elsewhere(fds))
        except OSError:
            return False  # No process to be had: rather later than here.
        return True

    def _look(self) -> None:
        before = len(self._children)
        self._children = {pid for pid in self._children if not _ended(pid)}
        hangs = len(self._children) == before
        self._look_s = min(2 * self._look_s, LAST_LOOK_S) if hangs else FIRST_LOOK_S
        self._work()
        if self._children or self._waiting:
            self._later(self._look_s, self._look)
        else:
            self._look_s = 0.0


class ForeignFds:
    """The descriptors that one peer sent: they are let go of together.

    Args:
        closer: closes them.
    """

    def __init__(self, closer: Closer) -> None:
        self._closer = closer
        self._dropped: list[int] = []

    def own(self, fd: int) -> OwnedFd:
        """An owner of one of them."""
        return _ForeignFd(fd, self)

    def drop(self, fd: int) -> None:
        """Closes one with the next ``let_go``; at once where that is done at once."""
        if fd_kind(fd) is FdKind.EVENTFD:
            os.close(fd)
        else:
            self._dropped.append(fd)

    def let_go(self) -> None:
        """Has everything closed that its owners have closed since the last time."""
        dropped, self._dropped = self._dropped, []
        self._closer.close(dropped)


class _ForeignFd(OwnedFd):
    """A descriptor that a peer sent."""

    __slots__ = ("_peer",)

    def __init__(self, fd: int, peer: ForeignFds) -> None:
        super().__init__(fd)
        self._peer = peer

    def close(self) -> None:
        if self._fd >= 0:
            self._peer.drop(self.detach())


def close_elsewhere(fds: Sequence[int]) -> int:
    """Closes descriptors of ours in a child, in this order; for a process with one thread.

    Returns:
        The child's process id, to be waited for.

    Raises:
        OSError: no process to be had; they are open as before.
    """
    parent = os.getpid()
    # A handler would run in the child too, and tell our event loop, whose pipe they share.
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = clone_sharing_fds()
        if pid == 0:
            _close_all(fds, parent)
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _close_all(fds: Sequence[int], parent: int) -> NoReturn:
    """The child's life. Nothing else of ours may run: it would act on the parent's descriptors."""
    try:
        gc.disable()
        # It has all of our descriptors: as long as it lingers, those of a parent that was killed.
        jail.die_with(parent, NAME)
        for fd in fds:
            try:
                os.close(fd)
            except OSError:
                continue  # Closed it is, whatever its file had to say.
    finally:
        os._exit(0)


def _ended(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True
