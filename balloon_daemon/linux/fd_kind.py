"""What a descriptor is of, told by the kernel alone: its file may never answer."""

import fcntl
import os
import socket
from enum import Enum

from balloon_daemon.linux.libc import socket_domain
from balloon_daemon.linux.memory import F_GET_SEALS


class FdKind(Enum):
    """What a descriptor is of, as far as it matters; the words are for the log."""

    EVENTFD = "eventfd"
    UNIX_SOCKET = "Unix socket"
    INET_SOCKET = "Internet socket"
    MEMORY = "memory file"
    PIPE = "pipe"
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
    if name.startswith("pipe:["):
        return FdKind.PIPE
    if name.startswith("socket:["):
        return _SOCKETS.get(socket_domain(fd), FdKind.OTHER)
    try:
        # Answered by shmem and hugetlbfs alone, and by the kernel itself.
        fcntl.fcntl(fd, F_GET_SEALS)
    except OSError:
        return FdKind.OTHER
    return FdKind.MEMORY


_SOCKETS: dict[int | None, FdKind] = {
    socket.AF_UNIX: FdKind.UNIX_SOCKET,
    socket.AF_INET: FdKind.INET_SOCKET,
    socket.AF_INET6: FdKind.INET_SOCKET,
}
