"""Turns: what the VMMs of one user say is taken for a millisecond at most, then others' is."""

import asyncio
import select
import time
from collections import deque
from collections.abc import Callable

TURN_S = 0.001
"""So long a virtual CPU of another user's VM may wait for its answer, for each user with much to
say; longer than an access to the config space takes, which is some 50 µs."""

AT_ONCE = 16
"""Connections of a user that the event loop looks at itself: what they all say at a time, one
message each, takes no longer than a turn, and costs a sixth less than by way of ``_take``."""

LOOK_AT = 32
"""Connections that the kernel names at a time."""

Ready = Callable[[], None]
"""Takes one message of a connection."""


class Turns:
    """When the connections of one user are heard.

    Beyond the first few, the event loop sees one descriptor for all of them: an epoll instance can
    be waited for like any other (epoll(7)). However many have something to say, the loop hears of
    it once, and what is not taken in this turn of the loop costs nobody anything until the next.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll()
        self._at_once: set[int] = set()
        self._ready: dict[int, Ready] = {}
        self._line: deque[int] = deque()
        """Connections that the kernel has named and whose turn has not come."""
        self.over = False
        """Nothing more of this user's is to be taken in this turn of the loop."""
        self._loop.add_reader(self._epoll.fileno(), self._take)

    def watch(self, fd: int, ready: Ready) -> None:
        """Calls ``ready``, which looks at ``over``, whenever a connection has something to say."""
        if len(self._at_once) < AT_ONCE:
            self._at_once.add(fd)
            self._loop.add_reader(fd, ready)
        else:
            self._ready[fd] = ready
            self._epoll.register(fd, select.EPOLLIN)

    def unwatch(self, fd: int) -> None:
        """Calls it no more."""
        if fd in self._at_once:
            self._at_once.discard(fd)
            self._loop.remove_reader(fd)
        elif self._ready.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def end(self) -> None:
        """What was taken is for a task, or took long: that was it for this turn of the loop."""
        if not self.over:
            self.over = True
            self._loop.call_soon(self._begin)

    def _begin(self) -> None:
        self.over = False

    def close(self) -> None:
        """Lets go of the loop; no connection is watched any more."""
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _take(self) -> None:
        if not self._line:
            self._line.extend(fd for fd, _ in self._epoll.poll(0, LOOK_AT))
        ends_at = time.monotonic() + TURN_S
        while self._line and not self.over:
            # Unwatched meanwhile; or closed, and its number another's, which then finds nothing.
            ready = self._ready.get(self._line.popleft())
            if ready is not None:
                ready()
            if self._line and time.monotonic() >= ends_at:
                return
