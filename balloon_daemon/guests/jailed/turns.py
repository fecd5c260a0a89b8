"""Turns: what the VMMs of one user say is taken for a moment, then others' is."""

import asyncio
import select
import time
from collections import deque
from collections.abc import Callable

from balloon_daemon.guests.jailed.two_lines import TwoLines

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

OF_THE_LOOP, OF_THE_LOOP_AT_ONCE = 1 / 4, 1 / 2
"""Of the event loop's time, so much may go to one user's connections for long: to those looked at
in turns, and to those looked at at once. A quarter is 5,000 accesses a second, for 5 GiB. Without
a bound a user who floods them keeps the controller on a processor all the time, and a process that
never sleeps waits milliseconds for the scheduler before each wake-up."""

SAVED_S, OWED_S = 0.5, 0.1
"""So much of that can be saved up (some 70 VMs that start in the same moment), or be owed."""

PUT_BACK_FOR_S = 10.0
"""So long a connection that took too much is looked at in turns, like a new one."""

Ready = Callable[[], None]
"""Takes one message of a connection."""


class Allowance:
    """How much of the event loop's time one user may still have; it outlives its connections.

    Args:
        share: of the loop's time that is earned.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self._saved_s, self._at_s = SAVED_S, 0.0

    def charge(self, spent_s: float, now_s: float) -> float:
        """Takes what was spent; returns what is left, in seconds, 0 or less where nothing is."""
        saved_s = min(self._saved_s + (now_s - self._at_s) * self.share, SAVED_S)
        self._saved_s, self._at_s = max(saved_s - spent_s, -OWED_S), now_s
        return self._saved_s


class Allowances:
    """What one user may have of the loop's time, for both kinds of its connections."""

    def __init__(self) -> None:
        self.in_turns = Allowance(OF_THE_LOOP)
        self.at_once = Allowance(OF_THE_LOOP_AT_ONCE)


class Turns:
    """When the connections of one user are heard.

    All but the oldest are behind one descriptor for the event loop: an epoll instance can be
    waited for like any other (epoll(7)). However many have something to say, the loop hears of it
    once, and what is not taken in this turn of the loop costs nobody anything until the next.
    Those rest while their allowance is used up. Of the oldest, the one that has taken most is put
    back among the others then: a user's honest VM is still heard at once beside one that floods.

    Args:
        allowances: the user's.
    """

    def __init__(self, allowances: Allowances) -> None:
        self._allowances = allowances
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll()
        self._at_once: dict[int, float] = {}
        """Seconds that each has taken since one was put back."""
        self._put_back: dict[int, asyncio.TimerHandle] = {}
        self._watched: dict[int, Ready] = {}
        self._line: deque[int] = deque()
        """Connections that the kernel has named and whose turn has not come."""
        self._given = self._closed = False
        self._waiting = TwoLines()
        self._turn: tuple[int, float] | None = None
        """Whose task has the present turn of the loop, and since when."""
        self._rest: asyncio.TimerHandle | None = None
        self._loop.add_reader(self._epoll.fileno(), self._take)

    def watch(self, fd: int, ready: Ready) -> None:
        """Calls ``ready``, in turns, while a connection has something to say."""
        if fd in self._at_once:
            self._loop.add_reader(fd, self._take_at_once, fd, ready)
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
        self._put_back.pop(fd, None)
        if len(self._at_once) < AT_ONCE:
            ready = self._watched.get(fd)
            self.unwatch(fd)
            self._at_once[fd] = 0.0
            if ready is not None:
                self.watch(fd, ready)

    def leave(self, fd: int) -> None:
        """A connection goes."""
        self.unwatch(fd)
        self._at_once.pop(fd, None)
        if (later := self._put_back.pop(fd, None)) is not None:
            later.cancel()

    def charge(self, spent_s: float) -> None:
        """So many seconds of the loop went to connections that are heard in turns."""
        left_s = self._allowances.in_turns.charge(spent_s, self._loop.time())
        if left_s <= 0 and self._rest is None and not self._closed:
            self._loop.remove_reader(self._epoll.fileno())
            rest_s = (TURN_S - left_s) / self._allowances.in_turns.share
            self._rest = self._loop.call_later(rest_s, self._rested)

    def _rested(self) -> None:
        self._rest = None
        self._loop.add_reader(self._epoll.fileno(), self._take)
        if self._waiting.young and not self._given:
            self._given = True
            self._give()

    def _charge_at_once(self, fd: int, spent_s: float) -> None:
        self._at_once[fd] += spent_s
        if self._allowances.at_once.charge(spent_s, self._loop.time()) > 0:
            return
        most = max(self._at_once, key=self._at_once.__getitem__)
        ready = self._watched.get(most)
        self.leave(most)
        if ready is not None:
            self.watch(most, ready)
        later = self._loop.call_later(PUT_BACK_FOR_S, self.establish, most)
        self._put_back[most] = later
        self._at_once = dict.fromkeys(self._at_once, 0.0)

    async def mine(self, fd: int) -> None:
        """Waits for a turn of the loop in which no other task of this user's begins.

        Old connections and new ones take turns: neither kind keeps the other from its own. New
        ones wait longer while they rest.
        """
        if not self._given and (self._rest is None or fd in self._at_once):
            self._given = True
            self._turn = fd, self._loop.time()
            self._loop.call_soon(self._give)
            return
        turn: asyncio.Future[None] = self._loop.create_future()
        self._waiting.add(fd, turn, old=fd in self._at_once)
        await turn

    def close(self) -> None:
        """Lets go of the loop; no connection is watched any more."""
        self._closed = True
        for timer in (self._rest, *self._put_back.values()):
            if timer is not None:
                timer.cancel()
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _give(self) -> None:
        """Gives the next turn of the loop to whoever waits longest."""
        self._end_turn()
        fd = self._waiting.wake_next(young=self._rest is None)
        self._given = fd is not None
        if fd is not None:
            self._turn = fd, self._loop.time()
            self._loop.call_soon(self._give)

    def _end_turn(self) -> None:
        """Charges a task for its turn, which is over when the loop comes round.

        Others' turns lie between, so no more is charged than a turn may take.
        """
        if self._turn is not None:
            fd, since_s = self._turn
            self._turn = None
            spent_s = min(self._loop.time() - since_s, 2 * TURN_S)
            if fd in self._at_once:
                self._charge_at_once(fd, spent_s)
            else:
                self.charge(spent_s)

    def _take_at_once(self, fd: int, ready: Ready) -> None:
        began = time.monotonic()
        ready()
        if fd in self._at_once:
            self._charge_at_once(fd, time.monotonic() - began)

    def _take(self) -> None:
        began = time.monotonic()
        if not self._line:
            self._line.extend(fd for fd, _ in self._epoll.poll(0, LOOK_AT))
        while self._line:
            # Unwatched meanwhile; or closed, and its number another's, which then finds nothing.
            ready = self._watched.get(self._line.popleft())
            if ready is not None:
                ready()
            if self._line and time.monotonic() >= began + TURN_S:
                break
        self.charge(time.monotonic() - began)
