"""The vhost-user socket: whole messages with their file descriptors, never blocking.

Runs in the controller, which receives bytes from a VMM only here.
"""

import array
import contextlib
import fcntl
import os
import select
import socket
import termios
from collections.abc import Iterator, Sequence
from typing import Protocol

from balloon_daemon.errors import FrontendError
from balloon_daemon.linux.credentials import living_peer_of, peer_of
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.linux.fd_kind import FdKind, fd_kind
from balloon_daemon.linux.memory_file_kind import FileSystems, inspect_memory_file
from balloon_daemon.linux.passed_fds import (
    DescriptorsSentError,
    bytes_without_fds,
    read_urgent_in_place,
)
from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.vhost_user.foreign_fds import ForeignFds
from balloon_daemon.vhost_user.known_accesses import MOST_BYTES
from balloon_daemon.vhost_user.memory_table import Fd, FileFacts
from balloon_daemon.vhost_user.messages import (
    HEADER,
    MAX_FDS,
    MAX_PAYLOAD_BYTES,
    FrontendRequest,
    Message,
)

SCM_MAX_FD = 253
"""The most descriptors in one message (include/net/scm.h). The ancillary buffer has room for all:
descriptors beyond the buffer's end would be closed by the kernel within recvmsg()."""

_ANCILLARY_BYTES = socket.CMSG_SPACE(SCM_MAX_FD * array.array("i").itemsize)
_PEEK, _CTRUNC = int(socket.MSG_PEEK), int(socket.MSG_CTRUNC)
"""Plain integers: an operation of the enumeration's own takes a function of Python's."""

MAX_UNSENT_BYTES = 64 * 1024
"""Replies that a front-end may leave unread before its connection is closed."""

_KINDS: dict[int, FdKind] = {
    FrontendRequest.SET_VRING_KICK: FdKind.EVENTFD,
    FrontendRequest.SET_VRING_CALL: FdKind.EVENTFD,
    FrontendRequest.SET_VRING_ERR: FdKind.EVENTFD,
    FrontendRequest.SET_BACKEND_REQ_FD: FdKind.UNIX_SOCKET,
}
"""The kinds of descriptors with which devices are forked, besides memory files, which the memory
table inspects. QEMU, crosvm and others send no other kinds; writing to or closing another kind of
file may block for ever."""


def right_kind(request: int, fd: Fd) -> bool:
    """Whether a descriptor is of the kind that the request needs."""
    kind = _KINDS.get(request)
    return kind is None or fd_kind(fd.fileno()) is kind


def inspect_memory(
    fds: Sequence[Fd], file_systems: FileSystems | None = None
) -> Iterator[FileFacts]:
    """What is known of each memory region's file (``FileFacts``).

    Args:
        fds: the descriptors that came with one message.
        file_systems: tells the types of file systems; None: a new one.
    """
    file_systems = file_systems or FileSystems()
    for fd in fds:
        file = inspect_memory_file(fd.fileno(), file_systems)
        yield FileFacts(file.size_bytes, file.page_bytes, file.never_freed, file.mappable)


class Received(NamedTuple):
    """A whole message.

    Attributes:
        message: without its descriptors.
        fds: its descriptors, now the caller's.
        lost: True: the message came with descriptors for which this process had no room; ``fds``
            is empty.
    """

    message: Message
    fds: tuple[OwnedFd, ...]
    lost: bool = False


class Answers(Protocol):
    """Answers requests like earlier ones: ``KnownAccesses``."""

    def answer(self, waiting: bytes) -> tuple[bytes, bool] | None:
        """Performs a request, if these bytes are one that it knows; the reply, and whether
        ``actual`` was written."""


class Records(Protocol):
    """Records the request in hand: a journal."""

    def begin(self, number: int, request: bytes) -> None:
        """Records a request, before it is read from the connection."""

    def sending(self) -> None:
        """Notes that the answer is about to be sent."""


def _hang_up(sock: socket.socket) -> bool:
    """Shuts a connection down; True where no descriptors wait in its queue, nor ever can.

    Other than ``passed_fds.hang_up`` this leaves what waits in the queue: so a front-end whose
    request was not read is told so by ECONNRESET.
    """
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    waits = int.from_bytes(fcntl.ioctl(sock, termios.FIONREAD, bytes(4)), "little")
    for _ in range(2):  # The first recvmsg() may report a pending SO_ERROR instead.
        try:
            return bytes_without_fds(sock, waits + 1) == waits
        except DescriptorsSentError:
            return False
        except OSError:
            continue
    return False


def _cut_off(received: bytes, wanted: int) -> EOFError | FrontendError:
    """The error for a front-end that hung up after so many of a message's bytes."""
    if not received:
        return EOFError()
    name = "header"
    if len(received) >= HEADER.size:
        name = Message(HEADER.unpack_from(received)[0], 0, b"").name
    return FrontendError(name, f"hung up after {len(received)} of {wanted} bytes")


class Connection:
    """One front-end's connection.

    Args:
        sock: a connected stream socket, owned by the connection from here on.
        foreign: closes the descriptors that are received.

    Attributes:
        foreign: the object of that name in ``Args``.
        unsent: replies, or the rest of one, that wait for ``flush``.
    """

    def __init__(self, sock: socket.socket, foreign: ForeignFds) -> None:
        sock.setblocking(False)
        read_urgent_in_place(sock)
        self._socket = sock
        self.foreign = foreign
        self._own = foreign.own
        self._received = b""
        self._wanted = HEADER.size
        self._waiting = 0
        self._fds: list[OwnedFd] = []
        self._lost = False
        self.unsent = bytearray()

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def local_path(self) -> str:
        """The path of the listening socket at which it was accepted (unix(7), getsockname(2))."""
        return os.fsdecode(self._socket.getsockname())

    def close(self, *, kept: bool = False) -> None:
        """Closes the socket and every received descriptor that no caller has taken.

        Args:
            kept: True: a store holds a duplicate of the socket, with which another controller goes
                on.
        """
        for fd in self._fds:
            fd.close()
        if kept or self._socket.fileno() < 0 or _hang_up(self._socket):
            self._socket.close()
        else:
            # Descriptors may still wait in the socket's queue. The socket's last close closes them
            # too, which may block, so a closer process does it.
            self._own(self._socket.detach()).close()
        self.close_dropped()

    def close_dropped(self) -> None:
        """Passes to the closer all received descriptors that their owners have closed."""
        self.foreign.close_dropped()

    def receive(self, no_fds: str = "") -> Received | None:
        """Reads the next message.

        The kernel hands over descriptors with the first byte of the message with which they were
        sent. So no read may go past a message's end: then all descriptors of a read belong to that
        message. A MSG_PEEK finds the message's end; if the message has not arrived as a whole, its
        header does.

        Args:
            no_fds: why the message may bring no descriptors, for the error; "": it may.

        Returns:
            A whole message with its descriptors; None where none is whole yet.

        Raises:
            EOFError: the front-end hung up between two messages.
            FrontendError: the front-end hung up in mid-message, a header is impossible, or
                descriptors wait although ``no_fds`` says why none may; these stay in the socket.
            OSError: the socket failed.
        """
        if not self._received and (self._waiting or self.peek()):
            self._wanted, self._waiting = self._waiting, 0
        while self._receive_some(no_fds):
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

    def _receive_some(self, no_fds: str) -> bool:
        """Reads the missing rest of the present header or message; False where nothing waits."""
        size = self._wanted - len(self._received)
        try:
            if no_fds:
                # Read no more than the bytes that have come without descriptors: the front-end may
                # send further bytes, with descriptors, before recvmsg.
                size = bytes_without_fds(self._socket, size)
            content, ancillary, flags, _ = self._socket.recvmsg(
                size, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return False
        except DescriptorsSentError as err:
            raise FrontendError("message", no_fds) from err
        except ConnectionResetError:
            content, ancillary, flags = b"", [], 0
        if ancillary or flags & _CTRUNC:
            self._take_fds(ancillary, truncated=bool(flags & _CTRUNC))
        if not content:
            raise _cut_off(self._received, self._wanted)
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
                    self.close_dropped()
                    raise FrontendError("message", f"more than {MAX_FDS} file descriptors")
                self._fds += map(self._own, numbers)
        # The buffer had room for all descriptors, so MSG_CTRUNC means that this process may open
        # no more files (RLIMIT_NOFILE). The kernel does not say which descriptors are missing, so
        # all descriptors of this message are closed unused.
        self._lost |= truncated
        if self._lost:
            for fd in self._fds:
                fd.close()
            self._fds = []
            self.close_dropped()

    def peer_uid(self) -> int:
        """The user who has made the connection (unix(7), SO_PEERCRED)."""
        return peer_of(self._socket).uid

    def peer_pid(self) -> int:
        """The process that has made the connection (unix(7), SO_PEERCRED); 0 where it is in
        another PID namespace."""
        return peer_of(self._socket).pid

    def is_of(self, pid: int) -> bool:
        """Whether a process that lives has made the connection."""
        return self.peer_pid() == pid and living_peer_of(self._socket) == pid

    def is_hung_up(self) -> bool:
        """Whether the front-end has hung up, even if unread bytes are left."""
        poll = select.poll()
        poll.register(self._socket, 0)
        return bool(poll.poll(0))

    def peek(self) -> bytes | None:
        """A copy of the next message, which stays in the socket, without its descriptors; None
        where no whole message waits."""
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

    def answer_known(self, answers: Answers, records: Records | None, number: int) -> bool | None:
        """Receives and answers a request that ``answers`` knows, if nothing else waits.

        One function, as out of cold caches each function costs as much as a system call.

        Args:
            answers: performs the request.
            records: records it; None: nothing does.
            number: its number among this front-end's messages.

        Returns:
            Whether ``actual`` was written; None: nothing is done, and ``receive`` is to be called.

        Raises:
            OSError: the front-end is gone.
        """
        if self._received or self._waiting or self.unsent:
            return None
        sock = self._socket
        try:
            request, _, flags, _ = sock.recvmsg(MOST_BYTES, 0, _PEEK)
        except OSError:
            return None  # ``receive`` meets the same error, and raises it.
        if flags & _CTRUNC or (answer := answers.answer(request)) is None:
            return None  # MSG_CTRUNC: descriptors have come with these bytes.
        reply, written = answer
        if records is not None:
            records.begin(number, request)
        sock.recv(len(request))
        if reply:
            if records is not None:
                records.sending()
            try:
                sent = sock.send(reply)
            except BlockingIOError:
                sent = 0
            if sent != len(reply):
                self.unsent += reply[sent:]
        return written

    def send(self, reply: bytes) -> bool:
        """Sends a reply, or keeps what the socket does not take for ``flush``; True: all is sent.

        Raises:
            FrontendError: the front-end has left too many replies unread.
            OSError: the front-end is gone.
        """
        if not self.unsent:
            # Usually the socket takes the whole reply at once, and no copy of it is needed.
            try:
                sent = self._socket.send(reply)
            except BlockingIOError:
                sent = 0
            if sent == len(reply):
                return True
            reply = reply[sent:]
        self.unsent += reply
        if len(self.unsent) > MAX_UNSENT_BYTES:
            raise FrontendError("reply", f"{len(self.unsent)} bytes of replies were never read")
        return self.flush()

    def flush(self) -> bool:
        """Sends unsent replies; True once all are sent."""
        try:
            while self.unsent:
                del self.unsent[: self._socket.send(self.unsent)]
        except BlockingIOError:
            return False
        return True
