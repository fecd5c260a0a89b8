"""Sockets of this process's that connect to others' Unix sockets and take no descriptors.

Since Linux 6.16 the kernel refuses descriptors at the sender (``passed_fds``), and such a socket
is an ordinary one. On older kernels it is a ``_WarySocket``: it looks at what waits (MSG_PEEK)
before each read, and never reads past a descriptor. A socket in whose queue descriptors may wait
is not closed in this process, as its close closes them too: a child closes it
(``LeftSockets``).
"""

import socket
from collections import Counter
from typing import TYPE_CHECKING

from balloon_daemon.linux.closing_child import ClosingChild
from balloon_daemon.linux.figures import lockable
from balloon_daemon.linux.passed_fds import (
    bytes_without_fds,
    hang_up,
    read_urgent_in_place,
    refuse_descriptors,
)

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MOST_CHILDREN = 16
"""How many children close sockets at a time. A close may never end, and each child is a process.
Only sockets over which somebody has sent descriptors wait for a child, so that such a close keeps
nobody waiting but others who have sent some."""

MOST_OF_AN_OWNER = 64
"""While so many sockets that led to sockets of one user are not closed, no further connection is
made to that user's."""


def fdless_socket(kind: socket.SocketKind) -> socket.socket:
    """A new Unix socket over which no descriptors come.

    Its ``recv`` and ``recv_into`` raise ``DescriptorsSentError``, on a kernel that does not refuse
    descriptors; no other method may be used to receive. ``close`` never waits.

    Args:
        kind: SOCK_STREAM or SOCK_SEQPACKET.

    Raises:
        OSError: no descriptor is free.
    """
    sock = socket.socket(socket.AF_UNIX, kind)
    return sock if refuse_descriptors(sock) else _WarySocket(sock.detach())


def leads_to(sock: socket.socket, owner: int) -> None:
    """Notes who owns the file of the socket that one of these is connected to."""
    if isinstance(sock, _WarySocket):
        sock.owner = owner


class LeftSockets:
    """Closes sockets in whose queues descriptors may wait, in children."""

    def __init__(self) -> None:
        self._waiting: list[tuple[int, int]] = []
        """Descriptors that no child closes yet, each with its owner as in ``leads_to``."""
        self._working: dict[ClosingChild, int] = {}
        self._idle: list[ClosingChild] = []
        """One child at most: a fork takes milliseconds."""

    def close(self, fd: int, owner: int) -> None:
        """Closes a socket soon; returns at once.

        Args:
            fd: the socket.
            owner: as in ``leads_to``.
        """
        self._waiting.append((fd, owner))
        self._go_on()

    def refused(self) -> list[int]:
        """To the sockets of which owners no connection is to be made now."""
        self._go_on()
        left = Counter([owner for _, owner in self._waiting] + [*self._working.values()])
        return [owner for owner, count in left.items() if count >= MOST_OF_AN_OWNER]

    def _go_on(self) -> None:
        for child in [child for child in self._working if child.is_done()]:
            del self._working[child]
            if child.takes_more and not self._idle:
                self._idle.append(child)
            else:
                child.end()
        while self._waiting and len(self._working) < MOST_CHILDREN:
            fd, owner = self._waiting[0]
            try:
                child = self._child_for(fd)
            except OSError:
                return  # The kernel allows no process: tried again at the next call.
            del self._waiting[0]
            self._working[child] = owner

    def _child_for(self, fd: int) -> ClosingChild:
        if self._idle:
            child = self._idle.pop()
            try:
                child.close([fd])
            except OSError:
                child.end()  # Somebody has killed it.
            else:
                return child
        return ClosingChild([fd], lockable)


LEFT = LeftSockets()
"""This process's."""


class _WarySocket(socket.socket):
    """A Unix socket on a kernel that does not refuse descriptors.

    Attributes:
        owner: as in ``leads_to``; -1: unknown.
    """

    __slots__ = ("owner",)

    def __init__(self, fd: int) -> None:
        super().__init__(fileno=fd)
        self.owner = -1
        read_urgent_in_place(self)

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """As of any socket.

        Raises:
            DescriptorsSentError: descriptors wait.
            OSError: the kernel's reason.
        """
        waiting = bytes_without_fds(self, bufsize)
        return super().recv(waiting, flags) if waiting else b""

    def recv_into(self, buffer: "WriteableBuffer", nbytes: int = 0, flags: int = 0, /) -> int:
        """As ``recv``."""
        waiting = bytes_without_fds(self, nbytes or memoryview(buffer).nbytes)
        return super().recv_into(buffer, waiting, flags) if waiting else 0

    def close(self) -> None:
        """Closes the socket, here or in a child."""
        if self.fileno() >= 0 and not hang_up(self):
            LEFT.close(self.detach(), self.owner)
        super().close()
