"""How much of what QEMU monitors send is read in a second: a part for each user.

Runs in the controller. What a read takes counts, not its bytes alone (``reading.py`` says why).
"""

import asyncio
from collections import Counter
from collections.abc import Callable

from balloon_daemon.guests.driven.reading import Reading

MAX_BYTES_PER_S = 512 * 1024
"""How many bytes of one monitor are read in a second; more are left unread until the second is
over. Reading short messages takes 60 ns a byte, of the one thread that serves all VMs."""

MAX_BYTES_OF_A_USER_PER_S = 2 * 1024 * 1024
"""How many bytes of all monitors of one user are read in a second: an eighth of that thread's
time. Each monitor has an equal part of these bytes, so that a monitor that floods delays no other
one."""

LEAST_BYTES_PER_S = 4 * 1024
"""How many bytes of a monitor are read in a second at least: enough for one sample a second, even
if each of its answers is read by itself. Each monitor of a user with 512 monitors or more has this
part; all parts of 768 monitors, the most that are found of one user, are 3/16 of that time."""

BYTE_S, READ_BYTES = 60e-9, 128
"""Reads are counted in bytes: a read's processor time counts as a byte for each ``BYTE_S``, and
``READ_BYTES`` are added for the 8 µs that the event loop takes for each read."""

_connected_of = Counter[int]()
"""How many monitors are connected, for each user."""


class MonitorReading:
    """The reads of one monitor, until ``end``.

    Args:
        user: whose monitor it is.
        again: called at the end of each second in which something was read.
    """

    def __init__(self, user: int, again: Callable[[], None]) -> None:
        self._user, self._again = user, again
        self._reading = Reading(user)
        _connected_of[user] += 1
        self._counted = 0
        self._second: asyncio.TimerHandle | None = None

    def buffer(self) -> memoryview:
        """Where the next bytes are to be read to; called right before they are."""
        return self._reading.buffer(self._part - self._counted)

    def take(self, n_bytes: int) -> memoryview:
        """The bytes that were read to ``buffer`` just now."""
        content = self._reading.take(n_bytes)
        self._counted += max(n_bytes, READ_BYTES + int(self._reading.took_s / BYTE_S))
        if self._second is None:
            self._second = asyncio.get_running_loop().call_later(1, self._next_second)
        return content

    @property
    def has_room(self) -> bool:
        """Whether more may be read in this second."""
        return self._counted < self._part

    def end(self) -> None:
        """The monitor is not connected any more."""
        self._reading.end()
        _connected_of[self._user] -= 1
        if self._second is not None:
            self._second.cancel()

    @property
    def _part(self) -> int:
        """How many bytes of this monitor are read in a second."""
        part = MAX_BYTES_OF_A_USER_PER_S // max(1, _connected_of[self._user])
        return min(max(part, LEAST_BYTES_PER_S), MAX_BYTES_PER_S)

    def _next_second(self) -> None:
        self._second = None
        self._counted = 0
        self._again()
