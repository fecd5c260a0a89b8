"""What VMMs for tests have in common: a real Unix socket, and clients that are served at once."""

import asyncio
import contextlib
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Self


@dataclass
class ListeningVmm:
    """A VMM that listens; a subclass serves its clients. Use with ``async with``.

    Attributes:
        socket_type: of its socket.
        path: the socket's path.
        clients: the tasks that serve clients, each with its client's socket.
    """

    socket_type: ClassVar[socket.SocketKind] = socket.SOCK_STREAM
    path: Path
    _listener: socket.socket | None = None
    _accepting: asyncio.Task[None] | None = None
    clients: dict[asyncio.Task[None], socket.socket] = field(default_factory=dict)

    async def serve(self, client: socket.socket) -> None:
        """Talks to a client; returns, or raises ConnectionError, to close the connection."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        self._listener = socket.socket(socket.AF_UNIX, self.socket_type)
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._listener.setblocking(False)
        self._accepting = asyncio.get_running_loop().create_task(self._accept(self._listener))
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._listener is not None
        assert self._accepting is not None
        self._accepting.cancel()
        await asyncio.wait([self._accepting])
        self._listener.close()
        await self.hang_up()

    async def hang_up(self) -> None:
        """Closes all connections."""
        tasks = list(self.clients)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(listener)
            task = loop.create_task(self._serve(client))
            self.clients[task] = client
            task.add_done_callback(self.clients.pop)

    async def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(asyncio.CancelledError, ConnectionError):
            await self.serve(client)
