"""A VMM's HTTP server for tests, and any misbehaviour on it."""

import asyncio
import json
import socket
from dataclasses import dataclass, field

from tests.fakes.listening_vmm import ListeningVmm

Reply = tuple[int, object]
"""A status and what the body is as JSON; None: no body."""


@dataclass(frozen=True, slots=True)
class Misbehaviour:
    """What a server does instead of an answer.

    Attributes:
        sends: the bytes.
        endless: whether it sends them again and again.
        closes: whether it closes the connection behind them; else it says no more.
    """

    sends: bytes = b""
    endless: bool = False
    closes: bool = False


HANGS = Misbehaviour()


@dataclass
class HttpVmm(ListeningVmm):
    """Answers ``reply()`` of a subclass.

    Attributes:
        asked: every call so far: method, target, body.
        misbehaviour: what it does instead of its next answers.
        chunked: whether its bodies come in chunks.
    """

    asked: list[tuple[str, str, object]] = field(default_factory=list)
    misbehaviour: Misbehaviour | None = None
    chunked: bool = False

    def reply(self, method: str, target: str, body: object) -> Reply:
        raise NotImplementedError

    async def serve(self, client: socket.socket) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=client)
        try:
            while head := await _head(reader):
                await self._answer(head, reader, writer)
        finally:
            writer.transport.abort()

    async def _answer(
        self, head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        first, *lines = head.splitlines()
        method, target, _ = first.split(" ")
        headers = dict(line.lower().split(": ") for line in lines if line)
        text = await reader.readexactly(int(headers.get("content-length", "0")))
        body = json.loads(text) if text else None
        self.asked.append((method, target, body))
        if self.misbehaviour is not None:
            await _misbehave(self.misbehaviour, writer)
            return
        status, value = self.reply(method, target, body)
        writer.write(_encoded(status, value, chunked=self.chunked))
        await writer.drain()


async def _head(reader: asyncio.StreamReader) -> str:
    try:
        return (await reader.readuntil(b"\r\n\r\n")).decode()
    except asyncio.IncompleteReadError:
        return ""


async def _misbehave(how: Misbehaviour, writer: asyncio.StreamWriter) -> None:
    writer.write(how.sends)
    await writer.drain()
    while how.endless:
        writer.write(how.sends)
        await writer.drain()
    if how.closes:
        writer.close()
        raise ConnectionError


def _encoded(status: int, value: object, *, chunked: bool) -> bytes:
    """An answer as micro_http, the server of Firecracker and Cloud Hypervisor, writes it."""
    head = f"HTTP/1.1 {status} \r\nServer: tests\r\nConnection: keep-alive\r\n".encode()
    if value is None:
        return head + b"\r\n"
    text = json.dumps(value).encode()
    head += b"Content-Type: application/json\r\n"
    if not chunked:
        return head + b"Content-Length: %d\r\n\r\n" % len(text) + text
    middle = len(text) // 2
    chunks = b"".join(
        b"%x\r\n%b\r\n" % (len(part), part) for part in (text[:middle], text[middle:])
    )
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
