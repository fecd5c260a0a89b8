"""One client of the API: its one request, parsed by h11, and its answer.

Each connection has one request. Another request needs another connection, which is cheap on a Unix
socket: so a client that sends nothing is late with its request, and can be dropped.

All buffers are bounded: h11 refuses a longer head, a longer body is refused here, and a client
that leaves ``MOST_WAITING_BYTES`` of a stream unread is dropped.
"""

import socket
from collections import deque
from enum import Enum, auto

import h11

from balloon_daemon.api.bodies import RefusedError
from balloon_daemon.api.messages import JSON, MAX_BODY_BYTES, REASONS, Request, Rights
from balloon_daemon.linux.passed_fds import bytes_without_fds, read_urgent_in_place

MAX_HEAD_BYTES = 8192
"""The longest request line with all headers; curl's own are some 80 bytes."""

RECEIVED_AT_ONCE = 16 * 1024

MOST_WAITING_BYTES = 1 << 20
"""How much of a stream may wait for its client: some 3,000 events, as many as three steps of the
sizing policy publish for 1,024 VMs. All streams share the lines themselves."""


class Phase(Enum):
    """How far a client's request and answer have come."""

    ASKING = auto()
    """The client's request is not complete."""
    WAITING = auto()
    """The client's answer is being made."""
    ANSWERED = auto()
    """The client's answer waits to be sent."""
    STREAMING = auto()
    """The client gets events as they come."""
    TRACING = auto()
    """The client gets a trace as it is made."""


class Client:
    """One client.

    Args:
        sock: the connection, non-blocking.
        uid: the client's user.
        rights: what it may do.
        deadline_s: until when its request has to be complete.

    Attributes:
        phase: how far its request and its answer have come.
        deadline_s: until when it has to send its request, or receive more of its answer; infinity:
            nothing is expected of the client.
        wanted: the VM whose events alone it gets; None: all events.
    """

    def __init__(self, sock: socket.socket, uid: int, rights: Rights, deadline_s: float) -> None:
        read_urgent_in_place(sock)
        self.sock = sock
        self.uid = uid
        self.rights = rights
        self.deadline_s = deadline_s
        self.phase = Phase.ASKING
        self.wanted: str | None = None
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._head: h11.Request | None = None
        self._body = bytearray()
        self._out = deque[bytes | memoryview]()
        self._waiting_bytes = 0

    @property
    def has_asked(self) -> bool:
        """Whether a part of the request has been received."""
        return self._head is not None or bool(self._http.trailing_data[0])

    def receive(self) -> Request | None:
        """Receives more of the request.

        Returns:
            The request, once it is complete; None until then.

        Raises:
            RefusedError: the request is malformed or too large.
            EOFError: the client has hung up.
            DescriptorsSentError: the client has sent descriptors.
            OSError: the connection has failed.
        """
        most = RECEIVED_AT_ONCE
        if self.phase is Phase.ASKING and self._head is None:
            # h11 refuses a longer head only while the head's end has not come.
            most = MAX_HEAD_BYTES + 1 - len(self._http.trailing_data[0])
        try:
            some = self.sock.recv(bytes_without_fds(self.sock, most))
        except BlockingIOError:
            return None
        if not some:
            raise EOFError
        if self.phase is not Phase.ASKING:
            return None  # What a client sends after its request is ignored.
        try:
            self._http.receive_data(some)
            while True:
                event = self._http.next_event()
                if event is h11.NEED_DATA:
                    return None
                if isinstance(event, h11.Request):
                    self._head = event
                    _refuse_chunks(event)
                elif isinstance(event, h11.Data):
                    self._body += event.data
                    if len(self._body) > MAX_BODY_BYTES:
                        sentence = f"the body is longer than {MAX_BODY_BYTES} bytes"
                        raise RefusedError(413, sentence)
                elif isinstance(event, h11.EndOfMessage):
                    return self._request()
                else:
                    raise EOFError
        except h11.RemoteProtocolError as err:
            status = err.error_status_hint
            if status not in REASONS:
                status = 400
            raise RefusedError(status, f"this is no HTTP request that can be read: {err}") from err

    def begin_answer(
        self, status: int, length: int | None, allow: str = "", kind: str = JSON
    ) -> None:
        """Queues the head of the answer.

        Args:
            status: the status code.
            length: the body's length in bytes; None: the body is a stream of lines, in chunks.
            allow: the value of the header ``Allow``; "": none.
            kind: the body's type, where it is no stream.

        Raises:
            RefusedError: the client's version of HTTP knows no chunks.
        """
        self.phase = Phase.ANSWERED
        # HTTP/1.0 has no chunks, and without them a stream that was cut short looks complete.
        if length is None and self._http.their_http_version == b"1.0":
            raise RefusedError(505, "the stream of events needs HTTP/1.1")
        kind = kind if length is not None else "application/x-ndjson"
        headers = [("Content-Type", kind), ("Connection", "close"), ("Cache-Control", "no-store")]
        if length is None:
            headers.append(("Transfer-Encoding", "chunked"))
        else:
            headers.append(("Content-Length", str(length)))
        if allow:
            headers.append(("Allow", allow))
        head = h11.Response(status_code=status, headers=headers, reason=REASONS[status])
        # h11 gets nothing of the body: each connection has one answer, and a body that many
        # clients share is queued as it is.
        self.queue(self._http.send(head) or b"")

    def queue(self, some: bytes) -> None:
        """Queues a part of the answer."""
        self._out.append(some)
        self._waiting_bytes += len(some)

    @property
    def streams(self) -> bool:
        """Whether its answer goes on for as long as balloond runs."""
        return self.phase in (Phase.STREAMING, Phase.TRACING)

    @property
    def is_behind(self) -> bool:
        """Whether more than ``MOST_WAITING_BYTES`` of a stream wait to be sent."""
        return self.streams and self._waiting_bytes > MOST_WAITING_BYTES

    def end_stream(self, last: bytes) -> None:
        """Ends a stream whose client reads too slowly. Drops all that waits to be sent but the
        first part, which may be half sent, and sends ``last`` after that.

        Args:
            last: the last chunks.
        """
        part = self._out.popleft()
        self._out.clear()
        self._out.extend((part, last))
        self._waiting_bytes = len(part) + len(last)
        self.phase = Phase.ANSWERED

    @property
    def has_more(self) -> bool:
        """Whether a part of the answer waits to be sent."""
        return bool(self._out)

    def send(self) -> bool:
        """Sends one part of the answer, as much of it as the kernel takes.

        Returns:
            Whether the kernel took anything.

        Raises:
            OSError: the connection has failed.
        """
        part = self._out[0]
        try:
            sent = self.sock.send(part)
        except BlockingIOError:
            return False
        self._waiting_bytes -= sent
        if sent == len(part):
            self._out.popleft()
        else:
            # A view, not a copy: the rest of a status may be a megabyte.
            self._out[0] = memoryview(part)[sent:]
        return True

    def _request(self) -> Request:
        head = self._head
        assert head is not None
        target = head.target.decode("ascii", errors="replace")
        accept = b",".join(value for name, value in head.headers if name == b"accept")
        method, body = head.method.decode(), bytes(self._body)
        return Request(method, target, body, self.rights, self.uid, accept.decode("latin-1"))


def _refuse_chunks(head: h11.Request) -> None:
    """Refuses a body in chunks, as RFC 9112 (section 6.3) allows: h11 took 19 to 35 ms for 2,700
    chunks of one byte, which one read may bring."""
    if any(name == b"transfer-encoding" for name, _ in head.headers):
        raise RefusedError(411, "a body needs Content-Length; chunks are not taken")


def chunk(content: bytes) -> bytes:
    """A part of a stream as a chunk (RFC 9112, section 7.1); it must not be empty."""
    return b"%x\r\n%b\r\n" % (len(content), content)
