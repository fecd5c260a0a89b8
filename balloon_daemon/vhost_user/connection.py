"""The vhost-user socket: whole messages with their file descriptors, never blocking.

Runs in the controller. Bytes from a VMM arrive here and nowhere else.
"""

import array
import errno
import os
import socket
from typing import NoReturn

from balloon_daemon.errors import FrontendError
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.vhost_user.messages import HEADER, MAX_FDS, MAX_PAYLOAD_BYTES, Message

_ANCILLARY_BYTES = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)
MAX_UNSENT_BYTES = 64 * 1024
"""Replies that a front-end may leave unread before its connection is closed."""


class Connection:
    """One front-end's connection."""

    def __init__(self, sock: socket.socket) -> None:
        """Takes over a connected stream socket."""
        sock.setblocking(False)
        self._socket = sock
        self._received = b""
        self._wanted = HEADER.size
        self._waiting = 0
        self._fds: list[OwnedFd] = []
        self._unsent = bytearray()

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        """Closes the socket and every descriptor that arrived and was not taken."""
        for fd in self._fds:
            fd.close()
        self._socket.close()

    def receive(self) -> tuple[Message, tuple[OwnedFd, ...]] | None:
        """Reads the next message.

        The kernel hands over descriptors with the first byte of the message that they were sent
        with, so no read goes past a message's end: what comes with it belongs to it. A look at
        what waits tells how far that is; where it is not all there yet, the header does.

        Returns:
            A whole message with its descriptors, now the caller's; None where none is whole yet.

        Raises:
            EOFError: the front-end hung up between two messages.
            FrontendError: it hung up in mid-message, or its header cannot be right.
            OSError: its descriptors found no room in this process, or the socket failed.
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
            if not self._fds:
                return message, ()
            fds, self._fds = tuple(self._fds), []
            return message, fds
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
                self._fds += map(OwnedFd, numbers)
        if len(self._fds) > MAX_FDS or (truncated and len(self._fds) == MAX_FDS):
            raise FrontendError("message", f"more than {MAX_FDS} file descriptors")
        if truncated:
            # There was room for them: this process may open no more (RLIMIT_NOFILE).
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def _hung_up(self) -> NoReturn:
        if not self._received:
            raise EOFError
        name = "header"
        if len(self._received) >= HEADER.size:
            name = Message(HEADER.unpack_from(self._received)[0], 0, b"").name
        raise FrontendError(name, f"hung up after {len(self._received)} of {self._wanted} bytes")

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
