"""Turns: what the VMMs of one user say is taken for a moment, then others' is."""

import asyncio
import select
import time
from collections import deque
from collections.abc import Callable

TURN_S = 0.0005
"""So long, for each of two things, a virtual CPU of another user's VM may wait for each user with
much to say; an access to the config space takes some 50 µs."""

AT_ONCE = 16
"""Connections of a user that the event loop looks at itself: one message of each takes no longer
than a turn, and costs a sixth less than by way of ``_take``."""

ESTABLISHED_S = 2.0
"""Only connections that have lived so long are among them. Else whoever connects, sends what takes
a millisecond to refuse, and connects again would have a millisecond of each turn sixteen times."""

LOOK_AT = 32
"""Connections that the kernel names at a time."""

Ready = Callable[[], None]
"""Takes one message of a connection."""


class Turns:
    """When the connections of one user are heard.

    All but the oldest are behind one descriptor for the event loop: an epoll instance can be
    waited for like any other (epoll(7)). However many have something to say, the loop hears of it
    once, and what is not taken in this turn of the loop costs nobody anything until the next.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll()
        self._at_once: set[int] = set()
        self._watched: dict[int, Ready] = {}
        self._line: deque[int] = deque()
        """Connections that the kernel has named and whose turn has not come."""
        self._given = False
        self._old_first = True
        self._old: deque[asyncio.Future[None]] = deque()
        self._young: deque[asyncio.Future[None]] = deque()
        self._loop.add_reader(self._epoll.fileno(), self._take)

    def watch(self, fd: int, ready: Ready) -> None:
        """Calls ``ready``, in turns, while a connection has something to say."""
        if fd in self._at_once:
            self._loop.add_reader(fd, ready)
        else:
            self._epoll.register(fd, select.EPOLLIN)
        self._watched[fd] = ready

    def unwatch(self, fd: int) -> None:
        """Calls it no more for now."""
        if self._watched.pop(fd, None) is None:
            return
        if fd in self._at_once:
            self._loop.remove_reader(fd)
        else:
            self._epoll.unregister(fd)

    def establish(self, fd: int) -> None:
        """A connection has lived for ``ESTABLISHED_S``: it is looked at at once, if there is room.

        Whoever calls this calls ``leave`` when it goes.
        """
        if len(self._at_once) < AT_ONCE:
            ready = self._watched.get(fd)
            self.unwatch(fd)
            self._at_once.add(fd)
            if ready is not None:
                self.watch(fd, ready)

    def leave(self, fd: int) -> None:
        """A connection goes."""
        self.unwatch(fd)
        self._at_once.discard(fd)

    async def mine(self, fd: int) -> None:
        """Waits for a turn of the loop in which no other task of this user's begins.

        Old connections and new ones take turns: neither kind keeps the other from its own.
        """
        if not self._given:
            self._given = True
            self._loop.call_soon(self._give)
            return
        turn: asyncio.Future[None] = self._loop.create_future()
        (self._old if fd in self._at_once else self._young).append(turn)
        await turn

    def close(self) -> None:
        """Lets go of the loop; no connection is watched any more."""
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _give(self) -> None:
        """Gives the next turn of the loop to whoever waits longest."""
        kinds = (self._old, self._young) if self._old_first else (self._young, self._old)
        self._old_first = not self._old_first
        for waiting in kinds:
            while waiting:
                turn = waiting.popleft()
                if not turn.done():
                    turn.set_result(None)
                    self._loop.call_soon(self._give)
                    return
        self._given = False

    def _take(self) -> None:
        if not self._line:
            self._line.extend(fd for fd, _ in self._epoll.poll(0, LOOK_AT))
        ends_at = time.monotonic() + TURN_S
        while self._line:
            # Unwatched meanwhile; or closed, and its number another's, which then finds nothing.
            ready = self._watched.get(self._line.popleft())
            if ready is not None:
                ready()
            if self._line and time.monotonic() >= ends_at:
                return
