"""Makes sockets that connect to others' Unix sockets and receive no descriptors.

Since Linux 6.16 the kernel refuses descriptors at the sender (``passed_fds``), and these sockets
are ordinary ones. On older kernels they are ``_WarySocket`` objects, which peek at the queue
(MSG_PEEK) before each read, and never read past a descriptor. The close of a socket also closes
the descriptors in its queue, which may block: so a socket in whose queue descriptors may wait is
closed by a child (``LeftSockets``).
"""

import contextlib
import errno
import socket
from collections import Counter
from typing import TYPE_CHECKING

from balloon_daemon.linux.closing_child import ClosingChild
from balloon_daemon.linux.figures import lockable
from balloon_daemon.linux.passed_fds import refuse_descriptors

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MOST_CHILDREN = 16
"""How many children close sockets at a time. A close may never end, and each child is a process.
Only sockets over which a peer has sent descriptors wait for a child, so a close that hangs delays
only the sockets of peers that have sent descriptors too."""

MOST_OF_AN_OWNER = 64
"""While so many sockets that were connected to one user's sockets wait for their close, no further
connection to that user's sockets is made."""

_READS = 64
"""After so many reads a socket that is still not empty counts as one in which descriptors wait. A
queue holds some 300 messages at most, by the usual limit of a sender's buffer (net.core.wmem_max).
One read of a stream takes 64 KiB, and a queue of packets holds 11 (net.unix.max_dgram_qlen)."""

_READ_BYTES = 1 << 16


class DescriptorsSentError(OSError):
    """The peer has sent descriptors; they wait in the socket's queue, and nothing behind them can
    be read. An OSError, with which asyncio's transports end a connection without a traceback."""

    def __init__(self) -> None:
        super().__init__(errno.EBADMSG, "it sends descriptors")


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
                child.end()  # Somebody has killed it.
            else:
                return child
        return ClosingChild([fd], lockable)


LEFT = LeftSockets()
"""The sockets that this process has left to children."""


class _WarySocket(socket.socket):
    """A Unix socket on a kernel that does not refuse descriptors.

    Attributes:
        owner: as in ``leads_to``; -1: unknown.
    """

    __slots__ = ("owner",)

    def __init__(self, fd: int) -> None:
        super().__init__(fileno=fd)
        self.owner = -1
        # SO_OOBINLINE: read urgent data (MSG_OOB) in its place in the stream. Otherwise the kernel
        # skips urgent bytes, and this process itself closes the descriptors that came with them.
        self.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        """Receives bytes like ``socket.recv``, but only bytes that came without descriptors.

        Raises:
            DescriptorsSentError: descriptors wait.
            OSError: the kernel's reason.
        """
        waiting = self._waiting_bytes(bufsize)
        return super().recv(waiting, flags) if waiting else b""

    def recv_into(self, buffer: "WriteableBuffer", nbytes: int = 0, flags: int = 0, /) -> int:
        """Receives bytes as ``recv`` does, into a buffer."""
        waiting = self._waiting_bytes(nbytes or memoryview(buffer).nbytes)
        return super().recv_into(buffer, waiting, flags) if waiting else 0

    def close(self) -> None:
        """Closes the socket, here or in a child."""
        if self.fileno() >= 0 and not self._is_emptied():
            LEFT.close(self.detach(), self.owner)
        super().close()

    def _waiting_bytes(self, most_bytes: int) -> int:
        """How many of the waiting bytes came without descriptors. The caller must read no more
        than that: before its read the peer may send further bytes, with descriptors."""
        # A MSG_PEEK without an ancillary buffer stops at the first bytes that came with
        # descriptors, and sets MSG_CTRUNC. The descriptors stay in the queue.
        content, _, flags, _ = self.recvmsg(most_bytes, 0, socket.MSG_PEEK)
        if flags & socket.MSG_CTRUNC:
            raise DescriptorsSentError
        return len(content)

    def _is_emptied(self) -> bool:
        """Shuts the connection down and reads what waits in the queue; True where no descriptors
        wait there afterwards, nor ever can."""
        with contextlib.suppress(OSError):
            self.shutdown(socket.SHUT_RDWR)
        for _ in range(_READS):
            try:
                content, _, flags, sender = self.recvmsg(_READ_BYTES, 0, socket.MSG_PEEK)
                if flags & socket.MSG_CTRUNC:
                    return False
                if not content and not sender:
                    # The queue's end: no bytes and no sender. An empty packet (SOCK_SEQPACKET) has
                    # a sender, the listening socket's address, and other packets may wait behind
                    # it.
                    return True
                super().recv(len(content) or 1)
            except OSError as err:
                # EINVAL, ENOTCONN: the socket was never connected, and after the shutdown nobody
                # could send over it even if it were connected now. Any other error is a pending
                # SO_ERROR, which the kernel reports once: read again.
                if err.errno in (errno.EINVAL, errno.ENOTCONN):
                    return True
        return False
