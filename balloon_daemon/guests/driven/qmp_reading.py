"""How much of what QEMU monitors send is read: in a second, and in one turn of the event loop.

Runs in the controller. A monitor may send each byte by a write of its own. The kernel keeps a
buffer for each of these writes, and a socket has room for some 270: reading them takes 0.2 ms,
however few bytes they have. So the processor time of a read counts as the bytes that could have
been read in it, and in one turn of the loop a user's monitors are read for ``TURN_S`` only.
"""

import asyncio
from collections.abc import Callable
from time import thread_time

MAX_BYTES_PER_S = 512 * 1024
"""How many bytes of one monitor are read in a second; more are left unread until the second is
over. Reading short messages takes 60 ns a byte, of the one thread that serves all VMs."""

MAX_BYTES_OF_A_USER_PER_S = 2 * 1024 * 1024
"""How many bytes of all monitors of one user are read in a second: an eighth of that thread's
time. Each monitor has an equal part of these bytes, so that a monitor that floods delays no other
one."""

LEAST_BYTES_PER_S = 2 * 1024
"""How many bytes of a monitor are read in a second at least, enough for a sample a second. It is
each monitor's part where its user has 1,024 monitors, the most sockets that are found."""

BYTE_S, READ_BYTES = 60e-9, 128
"""The time that counts as a byte, and the bytes that a read counts beside its time: the event loop
takes 8 µs for it."""

TURN_S = 0.001
"""For how long a user's monitors are read in one turn of the event loop. After that a byte of each
is read: asyncio has no way to read nothing without two system calls, which take longer."""

_BUFFER = memoryview(bytearray(16 * 1024))
"""Shared by all connections: asyncio fills this buffer and calls ``buffer_updated`` before it
reads from another connection."""


class _User:
    """What the monitors of one user share.

    Attributes:
        monitors: how many are connected.
        spent_s: for how long they have been read in this turn of the loop.
    """

    def __init__(self) -> None:
        self.monitors = 0
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
    """How much of one connected monitor is read.

    Args:
        user: whose monitor it is.
        again: called once a second is over in which something was read.
    """

    def __init__(self, user: int, again: Callable[[], None]) -> None:
        self._uid, self._again = user, again
        self._user = _USERS.setdefault(user, _User())
        self._user.monitors += 1
        self._counted = 0
        self._began_s = 0.0
        self._second: asyncio.TimerHandle | None = None

    def buffer(self) -> memoryview:
        """Where the next bytes are to be read to, right before they are."""
        self._began_s = thread_time()
        if self._user.spent_s >= TURN_S:
            return _BUFFER[:1]
        return _BUFFER[: max(1, self._part - self._counted)]

    def take(self, n_bytes: int) -> memoryview:
        """The bytes that were read to ``buffer`` just now."""
        spent_s = thread_time() - self._began_s
        self._user.spend(spent_s)
        self._counted += max(n_bytes, READ_BYTES + int(spent_s / BYTE_S))
        if self._second is None:
            self._second = asyncio.get_running_loop().call_later(1, self._next_second)
        return _BUFFER[:n_bytes]

    @property
    def has_room(self) -> bool:
        """Whether more may be read in this second."""
        return self._counted < self._part

    def end(self) -> None:
        """The monitor is not connected any more."""
        self._user.monitors -= 1
        if not self._user.monitors:
            _USERS.pop(self._uid, None)
        if self._second is not None:
            self._second.cancel()

    @property
    def _part(self) -> int:
        """How many bytes of this monitor are read in a second."""
        part = MAX_BYTES_OF_A_USER_PER_S // max(1, self._user.monitors)
        return min(max(part, LEAST_BYTES_PER_S), MAX_BYTES_PER_S)

    def _next_second(self) -> None:
        self._second = None
        self._counted = 0
        self._again()
