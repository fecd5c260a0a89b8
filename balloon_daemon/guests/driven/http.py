"""An HTTP client for one VMM's control socket: bounded in size and time, one call at a time.

Not a library: http.client blocks, and h11 0.16 costs the controller 0.5 MiB and 10 ms of imports,
aiohttp 3.14 11.6 MiB and 150 ms (dirty pages, CPython 3.11). A control socket has one server at
the other end, which speaks a small part of HTTP/1.1, so that little remains to be written.
"""

import asyncio
import contextlib
import json
import socket
from collections.abc import Mapping
from time import thread_time

from balloon_daemon.guests.driven.answers import member, nonsense, parse, shown
from balloon_daemon.guests.driven.control import CALL_WITHIN_S, ControlError, Fault
from balloon_daemon.guests.driven.http_answer import HttpAnswer, HttpAnswerParser
from balloon_daemon.guests.driven.parsing import TURNS
from balloon_daemon.guests.driven.reading_share import ReadingShare
from balloon_daemon.guests.driven.unix_socket import connect
from balloon_daemon.linux.credentials import living_peer_of, peer_of
from balloon_daemon.linux.passed_fds import DescriptorsSentError


class HttpConnection(asyncio.BufferedProtocol):
    """A connection to an HTTP server on a Unix socket, kept alive from call to call.

    Args:
        path: the socket's path.
        within_s: how long a call may take.
    """

    def __init__(self, path: str, within_s: float = CALL_WITHIN_S) -> None:
        self._path, self._within_s = path, within_s
        self._transport: asyncio.Transport | None = None
        self._parser: HttpAnswerParser | None = None
        self._answer: asyncio.Future[HttpAnswer | ControlError] | None = None
        self._lost: asyncio.Future[ControlError] = asyncio.get_running_loop().create_future()
        self._why: ControlError | None = None
        """Why the connection has ended, or is about to end; None: it is open."""
        self._user = -1
        self._reading: ReadingShare | None = None
        self.pid = 0
        """The server's process; 0 before ``open``."""

    async def open(self) -> None:
        """Connects.

        Raises:
            ControlError: no connection can be made.
        """
        sock = await connect(self._path, socket.SOCK_STREAM)
        self.pid, self._user = living_peer_of(sock), peer_of(sock).uid
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_unix_connection(lambda: self, sock=sock)

    async def get(self, target: str) -> object:
        """GETs a JSON value.

        Raises:
            ControlError: ``REFUSED`` where the server answers another status than 200.
        """
        status, value = await self.ask("GET", target)
        if status != 200:
            raise refused(status, value)
        return value

    async def change(self, method: str, target: str, body: Mapping[str, object]) -> None:
        """PUTs or PATCHes a JSON object.

        Raises:
            ControlError: ``REFUSED`` where the server answers a status of 300 or more.
        """
        status, value = await self.ask(method, target, body)
        if status >= 300:
            raise refused(status, value)

    async def ask(
        self, method: str, target: str, body: Mapping[str, object] | None = None
    ) -> tuple[int, object]:
        """Makes a call.

        Returns:
            The status, from 200 to 599, and the answer's JSON; None where its body is empty.

        Raises:
            ControlError: there is no answer, or none that makes sense.
        """
        if self._transport is None or self._lost.done():
            raise (self._why or ControlError(Fault.GONE)).anew()
        self._parser = HttpAnswerParser()
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(_request(method, target, body))
        try:
            # In a task that was cancelled before, asyncio.timeout() raises CancelledError instead
            # of TimeoutError.
            await asyncio.wait([self._answer], timeout=self._within_s)
            answer = self._answer.result() if self._answer.done() else ControlError(Fault.HANGS)
        finally:
            self._parser = self._answer = None
        if isinstance(answer, ControlError):
            raise answer.anew()
        if answer.last:
            self.close()
        await TURNS.room(self._user, len(answer.body))
        # The body of an error may be JSON or plain text: Cloud Hypervisor has sent both.
        if answer.status >= 400:
            return answer.status, answer.body.decode(errors="replace")
        return answer.status, parse(answer.body) if answer.body else None

    async def gone(self) -> ControlError:
        """Waits until the connection has ended; returns why."""
        await asyncio.wait([self._lost])
        return self._lost.result()

    def close(self) -> None:
        """Disconnects at once."""
        if self._transport is not None:
            self._transport.abort()

    # --- asyncio.BufferedProtocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        # Bytes do not count: how many are parsed in a second is bounded by ``TURNS``, and an
        # answer of 256 KiB would take all of a second's part.
        self._reading = ReadingShare(self._user, transport.resume_reading, bytes_count=False)

    def get_buffer(self, sizehint: int) -> memoryview:
        assert self._reading is not None
        return self._reading.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        assert self._reading is not None
        data = bytes(self._reading.take(nbytes))
        if self._parser is None or self._answer is None or self._answer.done():
            self._fail(nonsense("bytes without a call", data[:64]))
            return
        began_s = thread_time()
        try:
            answer = self._parser.feed(data)
        except ControlError as err:
            self._fail(err)
            return
        if answer is not None:
            self._answer.set_result(answer)
        self._reading.spent(thread_time() - began_s)
        if not self._reading.has_room and self._transport is not None:
            self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._reading is not None:
            self._reading.end()
        why = exc.strerror if isinstance(exc, OSError) else None
        fault = Fault.NONSENSE if isinstance(exc, DescriptorsSentError) else Fault.GONE
        first = self._fail(ControlError(fault, why or ""))
        if not self._lost.done():
            self._lost.set_result(first)

    def _fail(self, err: ControlError) -> ControlError:
        """Ends the connection; returns why it has ended, which may be an error before this one."""
        if self._why is None:
            self._why = err
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(err)
        self.close()
        return self._why


def refused(status: int, value: object) -> ControlError:
    """The error for an answer that is no success, with the server's words."""
    if isinstance(value, str):
        # "fault_message" is Firecracker's. Other VMMs' texts are shown as they are.
        with contextlib.suppress(ControlError):
            value = member(parse(value.encode()), "fault_message") or value
    return ControlError(Fault.REFUSED, f"{status}: {shown(value)}" if value else str(status))


def _request(method: str, target: str, body: Mapping[str, object] | None) -> bytes:
    head = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n"
    if body is None:
        return f"{head}\r\n".encode()
    text = json.dumps(body)
    length = len(text)  # json.dumps() writes ASCII alone
    return (
        f"{head}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{text}".encode()
    )
