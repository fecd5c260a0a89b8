"""How much of what VMMs send is read in a second: a part for each user.

Runs in the controller. What a read takes counts, not its bytes alone (``reading.py`` says why).
Monitors and HTTP connections of one user share that part; crosvm sends a packet for each request.
"""

import asyncio
from collections import Counter
from collections.abc import Callable

from balloon_daemon.guests.driven.reading import Reading

MAX_BYTES_PER_S = 512 * 1024
"""How many bytes of one VMM are read in a second; more are left unread until the second is over.
Reading short messages takes 60 ns a byte, of the one thread that serves all VMs."""

MAX_BYTES_OF_A_USER_PER_S = 2 * 1024 * 1024
"""How many bytes of all VMMs of one user are read in a second: an eighth of that thread's time.
Each VMM has an equal part of these bytes, so that one that floods delays no other one."""

LEAST_BYTES_PER_S = 4 * 1024
"""How many bytes of a VMM are read in a second at least: enough for one sample a second, even
if each of its answers is read by itself. Each VMM of a user with 512 of them or more has this
part; all parts of 768 VMMs, the most that are found of one user, are 3/16 of that time."""

BYTE_S, READ_BYTES = 60e-9, 128
"""Reads are counted in bytes: a read's processor time counts as a byte for each ``BYTE_S``, and
``READ_BYTES`` are added for the 8 µs that the event loop takes for each read."""

_connected_of = Counter[int]()
"""How many VMMs are connected, for each user."""


class ReadingShare:
    """The reads of one VMM, until ``end``.

    Args:
        user: whose VMM it is.
        again: called at the end of each second in which something was read.
        bytes_count: whether a byte counts as one, as of many short messages; False: only the time
            that reading takes counts, and what is ``spent`` on parsing. One answer may be large.
    """

    def __init__(self, user: int, again: Callable[[], None], *, bytes_count: bool = True) -> None:
        self._user, self._again, self._bytes_count = user, again, bytes_count
        self._reading = Reading(user)
        _connected_of[user] += 1
        self._counted = 0
        self._second: asyncio.TimerHandle | None = None

    def buffer(self) -> memoryview:
        """Where the next bytes are to be read to; called right before they are."""
        if not self._bytes_count:
            return self._reading.buffer()
        return self._reading.buffer(self._part - self._counted)

    def take(self, n_bytes: int) -> memoryview:
        """The bytes that were read to ``buffer`` just now."""
        content = self._reading.take(n_bytes)
        n_counted = n_bytes if self._bytes_count else 0
        self._counted += max(n_counted, READ_BYTES + int(self._reading.took_s / BYTE_S))
        if self._second is None:
            self._second = asyncio.get_running_loop().call_later(1, self._next_second)
        return content

    def spent(self, spent_s: float) -> None:
        """Counts processor time that was spent on what was taken last."""
        self._counted += int(spent_s / BYTE_S)

    @property
    def has_room(self) -> bool:
        """Whether more may be read in this second."""
        return self._counted < self._part

    def end(self) -> None:
        """The VMM is not connected any more."""
        self._reading.end()
        _connected_of[self._user] -= 1
        if self._second is not None:
            self._second.cancel()
        self._again = _nothing  # It refers to whoever refers to this object.

    @property
    def _part(self) -> int:
        """How many bytes of this VMM are read in a second."""
        part = MAX_BYTES_OF_A_USER_PER_S // max(1, _connected_of[self._user])
        return min(max(part, LEAST_BYTES_PER_S), MAX_BYTES_PER_S)

    def _next_second(self) -> None:
        self._second = None
        self._counted = 0
        self._again()


def _nothing() -> None:
    """Reads no more of a connection that has ended."""
