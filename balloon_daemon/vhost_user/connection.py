"""The vhost-user socket: whole messages with their file descriptors, never blocking.

Runs in the controller. Bytes from a VMM arrive here and nowhere else.
"""

import array
import contextlib
import fcntl
import select
import socket
import termios
from typing import NamedTuple, NoReturn

from balloon_daemon.errors import FrontendError
from balloon_daemon.linux.credentials import peer_of
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.linux.fd_kind import FdKind, fd_kind
from balloon_daemon.linux.memory import inspect_memory_file
from balloon_daemon.vhost_user.foreign_fds import ForeignFds
from balloon_daemon.vhost_user.memory_table import Fd, FileFacts
from balloon_daemon.vhost_user.messages import (
    HEADER,
    MAX_FDS,
    MAX_PAYLOAD_BYTES,
    FrontendRequest,
    Message,
)

SCM_MAX_FD = 253
"""include/net/scm.h. What there is no room for the kernel closes itself, within our own call."""

_ANCILLARY_BYTES = socket.CMSG_SPACE(SCM_MAX_FD * array.array("i").itemsize)
MAX_UNSENT_BYTES = 64 * 1024
"""Replies that a front-end may leave unread before its connection is closed."""

_KINDS: dict[int, FdKind] = {
    FrontendRequest.SET_VRING_KICK: FdKind.EVENTFD,
    FrontendRequest.SET_VRING_CALL: FdKind.EVENTFD,
    FrontendRequest.SET_VRING_ERR: FdKind.EVENTFD,
    FrontendRequest.SET_BACKEND_REQ_FD: FdKind.UNIX_SOCKET,
}
"""What devices are forked with besides memory, which the memory table looks at. QEMU, crosvm and
others send nothing else; another file may never answer whoever writes to it or closes it."""


def right_kind(request: int, fd: Fd) -> bool:
    """Whether a descriptor is of the kind that a request speaks of."""
    kind = _KINDS.get(request)
    return kind is None or fd_kind(fd.fileno()) is kind


def inspect_memory(fd: Fd) -> FileFacts:
    """What a memory region's file is."""
    file = inspect_memory_file(fd.fileno())
    return FileFacts(file.size_bytes, file.page_bytes, file.never_freed, file.mappable)


class Received(NamedTuple):
    """A whole message.

    Attributes:
        message: without its descriptors.
        fds: its descriptors, now the caller's.
        lost: it came with descriptors for which this process had no room; ``fds`` is empty.
    """

    message: Message
    fds: tuple[OwnedFd, ...]
    lost: bool = False


class Connection:
    """One front-end's connection.

    Args:
        sock: a connected stream socket, the connection's from here on.
        foreign: closes what came over it.

    Attributes:
        foreign: the same.
    """

    def __init__(self, sock: socket.socket, foreign: ForeignFds) -> None:
        sock.setblocking(False)
        # Urgent data is data like any other: else the kernel skips it, and closes its descriptors.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        self._socket = sock
        self.foreign = foreign
        self._own = foreign.own
        self._received = b""
        self._wanted = HEADER.size
        self._waiting = 0
        self._fds: list[OwnedFd] = []
        self._lost = False
        self._unsent = bytearray()

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self, *, kept: bool = False) -> None:
        """Closes the socket and every descriptor that arrived and was not taken.

        Args:
            kept: a store has the socket too, for another controller to go on with.
        """
        for fd in self._fds:
            fd.close()
        if kept or self._socket.fileno() < 0 or self._hang_up():
            self._socket.close()
        else:
            # With it goes what waits in it, descriptors and all.
            self._own(self._socket.detach()).close()
        self.let_go()

    def let_go(self) -> None:
        """Has the descriptors closed that came over it and whose owners have closed them."""
        self.foreign.let_go()

    def _hang_up(self) -> bool:
        """Ends the connection; True where no descriptors wait in it, nor ever will again."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        waits = int.from_bytes(fcntl.ioctl(self._socket, termios.FIONREAD, bytes(4)), "little")
        for _ in range(2):  # The first time, an error of before may be told.
            with contextlib.suppress(OSError):
                # It goes no further than to the first descriptors, and says that it lacks them.
                content, _, flags, _ = self._socket.recvmsg(waits + 1, 0, socket.MSG_PEEK)
                return len(content) == waits and not flags & socket.MSG_CTRUNC
        return False

    def receive(self) -> Received | None:
        """Reads the next message.

        The kernel hands over descriptors with the first byte of the message that they were sent
        with, so no read goes past a message's end: what comes with it belongs to it. A look at
        what waits tells how far that is; where it is not all there yet, the header does.

        Returns:
            A whole message with its descriptors; None where none is whole yet.

        Raises:
            EOFError: the front-end hung up between two messages.
            FrontendError: it hung up in mid-message, or its header cannot be right.
            OSError: the socket failed.
        """
        if not self._received and (self._waiting or self.peek()):
            self._wanted, self._waiting = self._waiting, 0
        while self._receive_some():
            if len(self._received) < self._wanted:
                continue
            request, flags, size = HEADER.unpack_from(self._received)
            if size > MAX_PAYLOAD_BYTES:
                raise FrontendError(
                    Message(request, flags, b"").name,
                    f"payload of {size} bytes, at most {MAX_PAYLOAD_BYTES} are allowed",
                )
            self._wanted = HEADER.size + size
            if len(self._received) < self._wanted:
                continue
            message = Message(request, flags, self._received[HEADER.size :])
            self._received, self._wanted = b"", HEADER.size
            if not self._fds and not self._lost:
                return Received(message, ())
            fds, self._fds = tuple(self._fds), []
            lost, self._lost = self._lost, False
            return Received(message, fds, lost)
        return None

    def _receive_some(self) -> bool:
        """Reads what the present part still lacks; False where nothing waits."""
        try:
            content, ancillary, flags, _ = self._socket.recvmsg(
                self._wanted - len(self._received), _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return False
        except ConnectionResetError:
            content, ancillary, flags = b"", [], 0
        if ancillary or flags & socket.MSG_CTRUNC:
            self._take_fds(ancillary, truncated=bool(flags & socket.MSG_CTRUNC))
        if not content:
            self._hung_up()
        self._received += content
        return True

    def _take_fds(self, ancillary: list[tuple[int, int, bytes]], *, truncated: bool) -> None:
        for level, kind, packed in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers = array.array("i")
                numbers.frombytes(packed[: len(packed) - len(packed) % numbers.itemsize])
                if len(self._fds) + len(numbers) > MAX_FDS:
                    for number in numbers:
                        self.foreign.drop(number)
                    self.let_go()
                    raise FrontendError("message", f"more than {MAX_FDS} file descriptors")
                self._fds += map(self._own, numbers)
        # There was room for them: this process may open no more (RLIMIT_NOFILE). Which ones came
        # is not known, so none of this message is used.
        self._lost |= truncated
        if self._lost:
            for fd in self._fds:
                fd.close()
            self._fds = []
            self.let_go()

    def _hung_up(self) -> NoReturn:
        if not self._received:
            raise EOFError
        name = "header"
        if len(self._received) >= HEADER.size:
            name = Message(HEADER.unpack_from(self._received)[0], 0, b"").name
        raise FrontendError(name, f"hung up after {len(self._received)} of {self._wanted} bytes")

    def peer_uid(self) -> int:
        """The user who has made the connection (unix(7), SO_PEERCRED)."""
        return peer_of(self._socket).uid

    def is_hung_up(self) -> bool:
        """Whether the front-end is gone, whatever it has left to be read."""
        poll = select.poll()
        poll.register(self._socket, 0)
        return bool(poll.poll(0))

    def brings_fds(self) -> bool:
        """Whether descriptors come with what waits next; they are left there."""
        # The first time, an error of before may be told.
        with contextlib.suppress(OSError):
            _, _, flags, _ = self._socket.recvmsg(1, 0, socket.MSG_PEEK)
            return bool(flags & socket.MSG_CTRUNC)
        return False

    def peek(self) -> bytes | None:
        """The next message as it stands in the socket, left there; None where none is whole.

        Without its descriptors: those come once it is received.
        """
        if self._received:
            return None
        try:
            waiting = self._socket.recv(HEADER.size + MAX_PAYLOAD_BYTES, socket.MSG_PEEK)
        except OSError:
            return None
        if len(waiting) < HEADER.size:
            return None
        end = HEADER.size + HEADER.unpack_from(waiting)[2]
        if end > len(waiting):
            return None
        self._waiting = end
        return waiting[:end]

    def send(self, reply: bytes) -> None:
        """Sends a reply, or keeps what the socket does not take for ``flush``.

        Raises:
            FrontendError: the front-end has left too many replies unread.
            OSError: the front-end is gone.
        """
        if not self._unsent:
            # As nearly always: the socket takes it whole, and nothing has to be kept.
            try:
                sent = self._socket.send(reply)
            except BlockingIOError:
                sent = 0
            if sent == len(reply):
                return
            reply = reply[sent:]
        self._unsent += reply
        if len(self._unsent) > MAX_UNSENT_BYTES:
            raise FrontendError("reply", f"{len(self._unsent)} bytes of replies were never read")
        self.flush()

    def flush(self) -> bool:
        """Sends what is left over; True once nothing is."""
        try:
            while self._unsent:
                del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            return False
        return True
