"""Tells which process and user are at the other end of a Unix socket."""

import errno
import select
import socket
import struct

from balloon_daemon.linux.figures import closes_are_behind, lockable
from balloon_daemon.named_tuple import NamedTuple

_CREDENTIALS = struct.Struct("3i")
_SO_PEERGROUPS = 59  # asm-generic/socket.h, Linux 4.13
_SO_PEERPIDFD = 77  # asm-generic/socket.h, Linux 6.5
_HAS_ENDED = (errno.ESRCH, errno.EINVAL, errno.ENODATA)
"""The errors by which kernels refuse the pidfd of a process that was reaped; newer kernels give a
pidfd of it."""


class Credentials(NamedTuple):
    """The peer of a Unix socket (SO_PEERCRED): the caller of connect(2), or listen(2)."""

    pid: int
    uid: int


def peer_of(sock: socket.socket) -> Credentials:
    """The process and user at the other end of a connected Unix socket."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return Credentials(*_CREDENTIALS.unpack(credentials)[:2])


def groups_of(sock: socket.socket) -> frozenset[int]:
    """The groups of the process at the other end of a connected Unix socket.

    Of a process in more than 256 groups only its effective group: Python's getsockopt(2) has no
    room for more.
    """
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    groups = {_CREDENTIALS.unpack(credentials)[2]}
    try:
        more = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 1024)
    except OSError as err:
        if err.errno != errno.ERANGE:
            raise
    else:
        groups.update(struct.unpack(f"{len(more) // 4}I", more))
    return frozenset(groups)


def living_peer_of(sock: socket.socket) -> int:
    """The process that SO_PEERCRED names; 0 where it has ended or is in another PID namespace. 0
    also where so many descriptors wait for their close that its pidfd, which shows whether it has
    ended, is not opened.

    The kernel goes on naming a process that has ended, by a process id that another process may
    have by now: a user who forks often enough could so have a connection that seems to be somebody
    else's VMM's. Before Linux 6.5 the kernel gives only the process id, and that cannot be
    noticed.
    """
    pid = peer_of(sock).pid
    if closes_are_behind():
        return 0
    try:
        # Any user may put many locks on a pidfd (fcntl(2)), and close(2) looks at all of them.
        # So a slow close is left to a child (``lockable``).
        process = lockable(sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD))
    except OSError as err:
        return 0 if err.errno in _HAS_ENDED else pid
    try:
        poller = select.poll()
        poller.register(process.fileno(), select.POLLIN)
        return 0 if poller.poll(0) else pid
    finally:
        process.close()
