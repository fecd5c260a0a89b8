"""One end of a vhost-user connection, for code that plays the VMM.

Runs in the fake guest's process and in tests. It sends whole messages, or any bytes that a
misbehaving VMM might send, and always waits with a deadline: the back-end has to answer, and a
missing answer fails a test. The daemon must never use it, because it waits for its peer.
"""

import array
import os
import select
import socket
import time
from collections.abc import Callable, Sequence

from balloon_daemon.errors import BalloondError
from balloon_daemon.vhost_user.messages import HEADER, MAX_FDS, MAX_PAYLOAD_BYTES, Message

DEFAULT_TIMEOUT_S = 60.0
"""How long a peer may take for one message: far longer than an answer takes on a loaded
machine."""


class BackendError(BalloondError):
    """The back-end broke vhost-user or refused a request, so that a VMM would give up."""


class Wire:
    """A stream socket that carries vhost-user messages with their file descriptors.

    Args:
        sock: a connected stream socket; owned from here on.
        timeout_s: longest wait for the peer, in seconds.
    """

    def __init__(self, sock: socket.socket, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        sock.setblocking(False)
        self._sock = sock
        self.timeout_s = timeout_s

    @classmethod
    def connect(cls, path: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> "Wire":
        """Connects to a listening back-end.

        Raises:
            OSError: no process listens there, or the socket may not be used.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # connect(2) blocks only while the listening process accepts no connections and its
            # backlog is full; settimeout() limits that.
            sock.settimeout(timeout_s)
            sock.connect(path)
        except OSError:
            sock.close()
            raise
        return cls(sock, timeout_s=timeout_s)

    def fileno(self) -> int:
        """The socket's file descriptor; −1 when closed."""
        return self._sock.fileno()

    def close(self) -> None:
        """Hangs up, even in the middle of a message."""
        self._sock.close()

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Sends bytes, well-formed or not, with file descriptors beside the first byte.

        Raises:
            TimeoutError: the peer read nothing for the whole timeout.
            OSError: the peer hung up.
        """
        deadline = time.monotonic() + self.timeout_s
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        rest = memoryview(data)
        while rest:
            try:
                sent = self._sock.sendmsg([rest], rights, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                self._wait(select.POLLOUT, deadline, "to take our message")
                continue
            rest = rest[sent:]
            rights = []

    def send_now(self, data: bytes) -> int:
        """Sends as many bytes as fit at this moment, like a VMM that floods its back-end.

        Returns:
            How many bytes the kernel accepted; 0 when the socket's buffer is full.
        """
        try:
            return self._sock.send(data, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0

    def receive(self, meanwhile: Callable[[], None] | None = None) -> tuple[Message, list[int]]:
        """Waits for one whole message.

        Args:
            meanwhile: called at least every 50 ms while waiting, to serve other channels.

        Returns:
            The message, and the file descriptors beside it, which the caller must close.

        Raises:
            TimeoutError: no whole message within the timeout.
            ConnectionError: the peer hung up.
            BackendError: a payload longer than any of the protocol.
        """
        deadline = time.monotonic() + self.timeout_s
        fds: list[int] = []
        try:
            request, flags, size = HEADER.unpack(
                self._exactly(HEADER.size, fds, deadline, meanwhile)
            )
            if size > MAX_PAYLOAD_BYTES:
                raise BackendError(f"a payload of {size} bytes, at most {MAX_PAYLOAD_BYTES}")
            payload = self._exactly(size, fds, deadline, meanwhile)
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        return Message(request, flags, payload), fds

    def readable(self) -> bool:
        """Tells whether bytes or an end of file wait to be read."""
        poller = select.poll()
        poller.register(self._sock, select.POLLIN)
        return bool(poller.poll(0))

    def _exactly(
        self,
        size: int,
        fds: list[int],
        deadline: float,
        meanwhile: Callable[[], None] | None,
    ) -> bytes:
        data = b""
        while len(data) < size:
            try:
                part, control, _, _ = self._sock.recvmsg(
                    size - len(data), socket.CMSG_SPACE(4 * MAX_FDS), socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                self._wait(select.POLLIN, deadline, "to answer", meanwhile)
                continue
            for level, kind, content in control:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    whole = len(content) // 4 * 4
                    fds.extend(memoryview(content[:whole]).cast("i").tolist())
            if not part:
                raise ConnectionResetError("the back-end hung up")
            data += part
        return data

    def _wait(
        self,
        events: int,
        deadline: float,
        what: str,
        meanwhile: Callable[[], None] | None = None,
    ) -> None:
        poller = select.poll()
        poller.register(self._sock, events)
        while True:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError(f"waited {self.timeout_s:g} s for the back-end {what}")
            slice_s = left_s if meanwhile is None else min(left_s, 0.05)
            if poller.poll(slice_s * 1000):
                return
            if meanwhile is not None:
                meanwhile()
