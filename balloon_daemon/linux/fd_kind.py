"""Tells the kind of a descriptor by asking the kernel only: a FUSE server may never answer."""

import contextlib
import fcntl
import os
import socket
from enum import Enum

from balloon_daemon.linux.libc import socket_domain
from balloon_daemon.linux.memory import F_GET_SEALS


class FdKind(Enum):
    """The kinds of descriptors that balloond tells apart; the values are for the log."""

    EVENTFD = "eventfd"
    UNIX_SOCKET = "Unix socket"
    INET_SOCKET = "Internet socket"
    MEMORY = "memory file"
    PIPE = "pipe"
    OTHER = "other"


class _OwnDirectory:
    """This process's /proc/PID/fd, open from the first use on.

    The kernel looks up a name that it has not cached under the directory's lock, and a listing of
    the directory holds that lock. Anybody may list /proc and /proc/PID, and so delay a lookup
    there. Through the open descriptor no name in them is looked up, and the directory itself only
    this process's user may list.
    """

    def __init__(self) -> None:
        self._fd, self._pid = -1, 0

    def fileno(self) -> int:
        """The descriptor.

        Raises:
            OSError: there is no /proc, or no descriptor is free.
        """
        if self._pid != os.getpid():
            # The first use, or the first in a forked child: the descriptor that the child has
            # inherited is its parent's directory.
            flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
            self._fd, self._pid = os.open("/proc/self/fd", flags), os.getpid()
        return self._fd


_OWN = _OwnDirectory()


def keep_own_directory() -> None:
    """Opens what ``fd_kind`` needs, so that no later call of it waits for a lookup."""
    with contextlib.suppress(OSError):
        _OWN.fileno()


def fd_kind(fd: int) -> FdKind:
    """Tells a descriptor's kind without a call that would ask the server of a FUSE file.

    The kernel itself makes the descriptor's name (proc(5), /proc/PID/fd), and a name without a
    slash is never that of a file in a file system.
    """
    try:
        name = os.readlink(str(fd), dir_fd=_OWN.fileno())
    except OSError:
        return FdKind.OTHER
    if name == "anon_inode:[eventfd]":
        return FdKind.EVENTFD
    if name.startswith("pipe:["):
        return FdKind.PIPE
    if name.startswith("socket:["):
        return _SOCKETS.get(socket_domain(fd), FdKind.OTHER)
    return FdKind.MEMORY if is_memory(fd) else FdKind.OTHER


def is_memory(fd: int) -> bool:
    """Whether a descriptor is a memory file's; takes a seventh of the time of ``fd_kind``."""
    try:
        # Only files of shmem and hugetlbfs answer F_GET_SEALS. For all others the kernel itself
        # refuses it, so no file system's server is asked.
        fcntl.fcntl(fd, F_GET_SEALS)
    except OSError:
        return False
    return True


_SOCKETS: dict[int | None, FdKind] = {
    socket.AF_UNIX: FdKind.UNIX_SOCKET,
    socket.AF_INET: FdKind.INET_SOCKET,
    socket.AF_INET6: FdKind.INET_SOCKET,
}
