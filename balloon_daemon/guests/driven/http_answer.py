"""Parses one answer of an HTTP/1.1 server, from bytes that are handed in. Pure.

The bounds are far above what VMMs answer (the longest, Cloud Hypervisor's ``vm.info``, is some
tens of KiB with its device tree) and far below what would hurt.

Source: RFC 9112 (HTTP/1.1), sections 4 (status line), 6 (message body), 7.1 (chunked).
"""

import re
from collections.abc import Generator
from dataclasses import dataclass

from balloon_daemon.guests.driven.answers import nonsense

MAX_HEAD_BYTES = 16 * 1024
"""The longest status line with all headers; also the longest line of a chunk's size."""

MAX_BODY_BYTES = 256 * 1024
"""The longest body of an answer that is accepted."""

_MAX_INTERIM = 4
_MAX_CHUNKS = 1024
_MAX_TRAILERS = 16
"""How many interim answers, chunks and trailer lines a server may send: each takes time to parse,
and the limits in bytes allow far more of them."""

_BEGINNING = b"HTTP/1."
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: [^\r\n]*)?")
_LENGTH = re.compile(rb"[0-9]{1,9}")
_CHUNK_LINE = re.compile(rb"([0-9a-fA-F]{1,8})[ \t]*(?:;[^\r\n]*)?")


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """An answer.

    Attributes:
        status: the status code, from 200 to 599.
        body: the body, without any coding.
        last: whether the server closes the connection after this answer.
    """

    status: int
    body: bytes
    last: bool


class HttpAnswerParser:
    """Parses one answer."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._steps = self._parse()
        next(self._steps)

    def feed(self, some: bytes) -> HttpAnswer | None:
        """Takes more of the answer's bytes.

        Returns:
            The answer, once it is complete.

        Raises:
            ControlError: the answer breaks the protocol or a bound, or bytes follow it.
        """
        self._bytes += some
        try:
            next(self._steps)
        except StopIteration as end:
            if self._bytes:
                raise nonsense("bytes after an answer", bytes(self._bytes[:64])) from None
            answer: HttpAnswer = end.value
            return answer
        return None

    # Each generator below yields when it needs more bytes than have come.

    def _parse(self) -> Generator[None, None, HttpAnswer]:
        for _ in range(1 + _MAX_INTERIM):
            # Refuse the first bytes that no HTTP answer begins with, without waiting for more: a
            # server of another protocol may send a greeting, and then wait for this client.
            while not self._bytes.startswith(_BEGINNING):
                if not _BEGINNING.startswith(self._bytes):
                    raise nonsense("status line", bytes(self._bytes[:64]))
                yield
            status, headers = yield from self._head()
            if status >= 200:
                break
        else:
            raise nonsense("status after interim ones", status)
        last = b"close" in headers.get(b"connection", b"").lower()
        if status in (204, 304):
            body = b""
        elif coding := headers.get(b"transfer-encoding"):
            if coding.lower() != b"chunked":
                raise nonsense("transfer-encoding", coding)
            body = yield from self._chunks()
        else:
            # By RFC 9112 a body without Content-Length ends with the connection. But micro_http,
            # the server of Firecracker and Cloud Hypervisor, leaves Content-Length out where there
            # is no body, and keeps the connection open.
            length = headers.get(b"content-length", b"0")
            if not _LENGTH.fullmatch(length) or int(length) > MAX_BODY_BYTES:
                raise nonsense("content-length", length)
            body = yield from self._take(int(length))
        return HttpAnswer(status, body, last)

    def _head(self) -> Generator[None, None, tuple[int, dict[bytes, bytes]]]:
        head = yield from self._until(b"\r\n\r\n")
        first, *lines = head.split(b"\r\n")
        status = _STATUS_LINE.fullmatch(first)
        if status is None:
            raise nonsense("status line", first)
        headers: dict[bytes, bytes] = {}
        for line in lines:
            name, colon, value = line.partition(b":")
            name, value = name.lower(), value.strip()
            if not colon or headers.get(name, value) != value:
                raise nonsense("header", line)
            headers[name] = value
        return int(status[1]), headers

    def _chunks(self) -> Generator[None, None, bytes]:
        body = bytearray()
        for _ in range(_MAX_CHUNKS):
            line = yield from self._until(b"\r\n")
            chunk = _CHUNK_LINE.fullmatch(line)
            if chunk is None:
                raise nonsense("chunk", line)
            length = int(chunk[1], 16)
            if len(body) + length > MAX_BODY_BYTES:
                raise nonsense("body of at least", len(body) + length)
            if not length:
                break
            body += yield from self._take(length)
            end = yield from self._take(2)
            if end != b"\r\n":
                raise nonsense("end of chunk", end)
        else:
            raise nonsense("chunks", _MAX_CHUNKS)
        for _ in range(1 + _MAX_TRAILERS):
            trailer = yield from self._until(b"\r\n")
            if not trailer:
                return bytes(body)
        raise nonsense("trailers", _MAX_TRAILERS)

    def _until(self, mark: bytes) -> Generator[None, None, bytes]:
        while (end := self._bytes.find(mark, 0, MAX_HEAD_BYTES)) < 0:
            if len(self._bytes) >= MAX_HEAD_BYTES:
                raise nonsense("head", "over 16 KiB")
            yield
        return self._cut(end, len(mark))

    def _take(self, length: int) -> Generator[None, None, bytes]:
        while len(self._bytes) < length:
            yield
        return self._cut(length, 0)

    def _cut(self, length: int, skipped: int) -> bytes:
        taken = bytes(self._bytes[:length])
        del self._bytes[: length + skipped]
        return taken
