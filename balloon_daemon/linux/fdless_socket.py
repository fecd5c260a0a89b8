"""Makes sockets that connect to others' Unix sockets and receive no descriptors.

Since Linux 6.16 the kernel refuses descriptors at the sender (``passed_fds``), and these sockets
are ordinary ones. On older kernels they are ``_WarySocket`` objects, which peek at the queue
(MSG_PEEK) before each read, and never read past a descriptor. The close of a socket also closes
the descriptors in its queue, which may block: so a socket in whose queue descriptors may wait is
closed by a child (``LeftSockets``).
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
Only sockets over which a peer has sent descriptors wait for a child, so a close that hangs delays
only the sockets of peers that have sent descriptors too."""

MOST_OF_AN_OWNER = 64
"""While so many sockets that were connected to one user's sockets wait for their close, no further
connection to that user's sockets is made."""


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
    """Notes that ``sock``, from ``fdless_socket``, is connected to a socket whose file this user
    owns."""
    if isinstance(sock, _WarySocket):
        sock.owner = owner


class LeftSockets:
    """Closes sockets in whose queues descriptors may wait, in children."""

    def __init__(self) -> None:
        self._waiting: list[tuple[int, int]] = []
        """Descriptors that no child closes yet, each with the user who owns the file of the socket
        to which it was connected (``leads_to``)."""
        self._working: dict[ClosingChild, int] = {}
        self._idle: list[ClosingChild] = []
        """At most one child without an order, kept for the next: a fork takes milliseconds."""

    def close(self, fd: int, owner: int) -> None:
        """Closes a socket soon; returns at once.

        Args:
            fd: the socket.
            owner: the user who owns the file of the socket to which it was connected.
        """
        self._waiting.append((fd, owner))
        self._go_on()

    def refused(self) -> list[int]:
        """The users to whose sockets no connection must be made now (``MOST_OF_AN_OWNER``)."""
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
                return  # The kernel allows no process: the next call tries again.
            del self._waiting[0]
            self._working[child] = owner

    def _child_for(self, fd: int) -> ClosingChild:
        if self._idle:
            child = self._idle.pop()
            try:
                child.close([fd])
            except OSError:
                child.end()  # The order was not sent: somebody has killed the child.
            else:
                return child
        return ClosingChild([fd], lockable)


LEFT = LeftSockets()
"""Closes the sockets that this process leaves to children."""


class _WarySocket(socket.socket):
    """A Unix socket on a kernel that does not refuse descriptors.

    Attributes:
        owner: the user who owns the file of the socket to which it is connected; -1: unknown.
    """

    __slots__ = ("owner",)

    def __init__(self, fd: int) -> None:
        super().__init__(fileno=fd)
        self.owner = -1
        read_urgent_in_place(self)

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """Receives bytes like ``socket.recv``, but only bytes that came without descriptors.

        Raises:
            DescriptorsSentError: descriptors wait.
            OSError: the kernel's reason.
        """
        waiting = bytes_without_fds(self, bufsize)
        return super().recv(waiting, flags) if waiting else b""

    def recv_into(self, buffer: "WriteableBuffer", nbytes: int = 0, flags: int = 0, /) -> int:
        """Receives bytes as ``recv`` does, into a buffer."""
        waiting = bytes_without_fds(self, nbytes or memoryview(buffer).nbytes)
        return super().recv_into(buffer, waiting, flags) if waiting else 0

    def close(self) -> None:
        """Closes the socket. If descriptors may wait in its queue, whose close may block, a child
        closes it."""
        if self.fileno() >= 0 and not hang_up(self):
            LEFT.close(self.detach(), self.owner)
        super().close()
