"""crosvm's control socket for tests, after its published source.

Source: crosvm's vm_control/src/lib.rs, balloon_tube.rs, base/src/sys/linux/tube.rs, of 2026-08.
"""

import asyncio
import contextlib
import errno
import json
import os
import socket
from dataclasses import dataclass, field
from typing import Self

from tests.fakes.listening_vmm import ListeningVmm


@dataclass
class FakeCrosvm(ListeningVmm):
    """A VM whose balloon follows at once; its orders and requests are served one after the other.

    Attributes:
        mem_bytes: the size of the file that its memory is in.
        memory_name: that file's name.
        asked: all requests so far.
        driver: whether its driver answers for its statistics.
        enotconn: whether its version answers for a driver that is missing.
        actual_bytes: the balloon's size; anything, from a VMM that lies.
        stats: the guest's statistics.
        raw: what it sends instead of any answer.
    """

    socket_type = socket.SOCK_SEQPACKET
    mem_bytes: int = 1 << 30
    memory_name: str = "crosvm_guest"
    asked: list[object] = field(default_factory=list)
    driver: bool = True
    enotconn: bool = True
    actual_bytes: object = 0
    stats: dict[str, object] = field(default_factory=lambda: {"free_memory": 1 << 29})
    raw: bytes | None = None
    _memory_fd: int = -1
    _waiting: list[tuple[object, socket.socket]] = field(default_factory=list)

    async def __aenter__(self) -> Self:
        self._memory_fd = os.memfd_create(self.memory_name)
        os.truncate(self._memory_fd, self.mem_bytes)
        return await super().__aenter__()

    async def __aexit__(self, *_: object) -> None:
        await super().__aexit__()
        os.close(self._memory_fd)

    def driver_comes(self) -> None:
        """The guest's driver listens from now on, and answers for what waits."""
        self.driver = True
        waiting, self._waiting = self._waiting, []
        for request, client in waiting:
            self._take(request, client)

    async def serve(self, client: socket.socket) -> None:
        while message := await asyncio.get_running_loop().sock_recv(client, 1 << 16):
            request = json.loads(message)
            self.asked.append(request)
            self._take(request, client)

    def _take(self, request: object, client: socket.socket) -> None:
        if self.raw is not None:
            client.send(self.raw)
            return
        match request:
            case {"BalloonCommand": _} if self._waiting or not (self.driver or self.enotconn):
                is_stats = request == {"BalloonCommand": "Stats"}
                if is_stats or self._waiting:
                    self._waiting.append((request, client))
                    return
            case {"BalloonCommand": _} if not self.driver:
                self._answer(client, {"Err": errno.ENOTCONN})
                return
        match request:
            case {"BalloonCommand": "Stats"}:
                sizes = {"stats": self.stats, "balloon_actual": self.actual_bytes}
                self._answer(client, {"BalloonStats": sizes})
            case {"BalloonCommand": {"Adjust": {"num_bytes": int(num_bytes)}}}:
                self.actual_bytes = num_bytes
                self._answer(client, "Ok")
            case _:
                self._answer(client, {"Err": errno.EINVAL})

    def _answer(self, client: socket.socket, answer: object) -> None:
        with contextlib.suppress(OSError):
            client.send(json.dumps(answer).encode())
