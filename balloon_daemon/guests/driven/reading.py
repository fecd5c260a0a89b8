"""Limits for how long the connections of one user's VMMs are read in a turn of the event loop.

Runs in the controller. A VMM may send each byte by a write of its own. The kernel keeps a buffer
for each of these writes, and a socket has room for some 270: reading them takes 0.2 ms, however
few bytes they have. Hundreds of a user's VMMs that do so would hold all other VMs up.
"""

import asyncio
from time import thread_time

TURN_S = 0.001
"""For how long a user's connections are read in one turn of the event loop. After that one byte of
each connection is read: to read nothing, asyncio needs two system calls, which take longer."""

_BUFFER = memoryview(bytearray(16 * 1024))
"""Shared by all connections: asyncio fills this buffer and calls ``buffer_updated`` before it
reads from another connection."""


class _User:
    """What the connections of one user share.

    Attributes:
        connections: how many there are.
        spent_s: for how long they have been read in this turn of the loop.
    """

    def __init__(self) -> None:
        self.connections = 0
        self.spent_s = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        """The loop in whose next turn ``spent_s`` begins anew; None: it is 0."""

    def spend(self, spent_s: float) -> None:
        """Notes how long a read took."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop, self.spent_s = loop, 0.0
            loop.call_soon(self._next)
        self.spent_s += spent_s

    def _next(self) -> None:
        self._loop, self.spent_s = None, 0.0


_USERS: dict[int, _User] = {}


class Reading:
    """The reads of one connection, until ``end``.

    Args:
        user: whose VMM it is.

    Attributes:
        took_s: the processor time of the last read.
    """

    def __init__(self, user: int) -> None:
        self._uid = user
        self._user = _USERS.setdefault(user, _User())
        self._user.connections += 1
        self._began_s = self.took_s = 0.0

    def buffer(self, most: int = len(_BUFFER)) -> memoryview:
        """Where the next bytes are to be read to; called right before they are.

        Args:
            most: how many may be read.
        """
        self._began_s = thread_time()
        return _BUFFER[: 1 if self._user.spent_s >= TURN_S else max(1, most)]

    def take(self, n_bytes: int) -> memoryview:
        """The bytes that were read to ``buffer`` just now."""
        self.took_s = thread_time() - self._began_s
        self._user.spend(self.took_s)
        return _BUFFER[:n_bytes]

    def end(self) -> None:
        """The connection has ended."""
        self._user.connections -= 1
        if not self._user.connections:
            _USERS.pop(self._uid, None)
