"""Serves the VMMs of one user for a moment, then those of other users."""

import asyncio
import select
import time
from collections import deque
from collections.abc import Callable, Coroutine, Generator

from balloon_daemon.guests.jailed.two_lines import TwoLines

TURN_S = 0.0002
"""How long other users' virtual CPUs may wait, each time, for one user who sends much: once for
the messages read and once for the task run in a turn. An access to the config space takes some 50
µs."""

AT_ONCE = 16
"""How many connections of a user the event loop watches itself: one message of each takes no
longer than a turn, and costs a sixth less than by way of ``_take``."""

ESTABLISHED_S = 2.0
"""How old a connection must be to be among these. Otherwise a user could connect, send a message
that takes a millisecond to refuse, and connect again, for a millisecond in each turn sixteen
times."""

LOOK_AT = 32
"""How many readable connections are taken from the epoll instance at a time."""

OF_THE_LOOP, OF_THE_LOOP_AT_ONCE = 1 / 4, 1 / 2
"""The parts of the event loop's time that one user's connections may use for long: those served in
turns, and those watched by the loop itself. A quarter is 5,000 accesses a second, for 5 GiB.
Without a limit a flooding user keeps the controller on a processor all the time, and the scheduler
lets a process that never sleeps wait milliseconds before each wake-up."""

A_REQUEST_COUNTS = 8
"""How many times over the time of a task is charged, which handles requests. An access to the
config space takes 50 µs. A request can take 1 ms, wakes the process that keeps descriptors and
perhaps children that close some: with each of them a processor less is free for other users' VMs.
"""

SAVED_S, OWED_S = 2.0, 0.1
"""How much of that time can be saved up (for some 35 VMs that start at the same moment), or
owed."""

LOW_S, APART_S = SAVED_S / 2, 0.001
"""A user with less than ``LOW_S`` left has sent much for seconds. Its tasks then run ``APART_S``
apart, the shortest sleep of the event loop: otherwise another user's access to the config space
waits for two or three of them in a row, as a task that is woken runs before what epoll reports."""

DEMOTED_FOR_S = 10.0
"""How long a connection that used too much time is served in turns, like a new one."""

Ready = Callable[[], None]
"""Handles one message of a connection."""


class Allowance:
    """One user's remaining share of the event loop's time; it outlives the user's connections.

    Args:
        share: the part of the loop's time that is earned.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self._saved_s, self._at_s = SAVED_S, 0.0

    @property
    def is_low(self) -> bool:
        """Whether most of what can be saved up was used when it was last charged."""
        return self._saved_s < LOW_S

    def charge(self, spent_s: float, now_s: float) -> float:
        """Deducts the time spent; returns the seconds left, 0 or less where none are."""
        saved_s = min(self._saved_s + (now_s - self._at_s) * self.share, SAVED_S)
        self._saved_s, self._at_s = max(saved_s - spent_s, -OWED_S), now_s
        return self._saved_s


class Allowances:
    """One user's shares of the loop's time, for both kinds of its connections."""

    def __init__(self) -> None:
        self.in_turns = Allowance(OF_THE_LOOP)
        self.at_once = Allowance(OF_THE_LOOP_AT_ONCE)


class EachStep:
    """Awaits a coroutine, and reports how long each of its steps has kept the event loop.

    A step is what runs between two suspensions (PEP 492): other tasks run in between, and their
    time is not counted.

    Args:
        coroutine: is awaited.
        took: takes each step's seconds.
    """

    def __init__(
        self, coroutine: Coroutine[object, None, None], took: Callable[[float], None]
    ) -> None:
        self._coroutine = coroutine
        self._took = took

    def __await__(self) -> Generator[object, None, None]:
        error: BaseException | None = None
        awaited: object
        while True:
            began = time.monotonic()
            try:
                if error is None:
                    awaited = self._coroutine.send(None)
                else:
                    awaited = self._coroutine.throw(error)
            except StopIteration:
                return
            finally:
                # Break the reference cycle of a cancelled task: the error's traceback refers to
                # this frame, and this variable to the error.
                error = None
                self._took(time.monotonic() - began)
            try:
                yield awaited
            except BaseException as thrown:
                error = thrown
            finally:
                # Break another one: the future's result may be the error that the next step raises
                # (``Inbox.next``).
                awaited = None


class Turns:
    """Decides when the connections of one user are served.

    All connections but the oldest are registered with one epoll instance, which the event loop
    watches like any descriptor (epoll(7)). However many of them are readable, the loop gets one
    event, and messages not read in this turn of the loop cost nothing until the next turn. These
    connections are not served while their allowance is used up. When the allowance of the oldest
    ones is used up, the one that has used most is moved to the others: so a user's honest VM is
    still served at once beside one that floods.

    Args:
        allowances: the user's.
    """

    def __init__(self, allowances: Allowances) -> None:
        self._allowances = allowances
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll()
        self._at_once: dict[int, float] = {}
        """The seconds that each has used since one of them was last moved to the others."""
        self._demoted: dict[int, asyncio.TimerHandle] = {}
        self._watched: dict[int, Ready] = {}
        self._line: deque[int] = deque()
        """Connections that epoll has reported and whose turn has not come."""
        self._given = self._closed = False
        self._waiting = TwoLines()
        self._rest: asyncio.TimerHandle | None = None
        self._loop.add_reader(self._epoll.fileno(), self._take)

    def watch(self, fd: int, ready: Ready) -> None:
        """Calls ``ready``, in turns, while a connection is readable."""
        if fd in self._at_once:
            self._loop.add_reader(fd, self._take_at_once, fd, ready)
        else:
            self._epoll.register(fd, select.EPOLLIN)
        self._watched[fd] = ready

    def unwatch(self, fd: int) -> None:
        """Stops calling it for now."""
        if self._watched.pop(fd, None) is None:
            return
        if fd in self._at_once:
            self._loop.remove_reader(fd)
        else:
            self._epoll.unregister(fd)

    def establish(self, fd: int) -> None:
        """Lets the loop watch a connection that is ``ESTABLISHED_S`` old, if there is room for it.

        The caller must call ``leave`` when the connection ends.
        """
        self._demoted.pop(fd, None)
        if len(self._at_once) < AT_ONCE:
            ready = self._watched.get(fd)
            self.unwatch(fd)
            self._at_once[fd] = 0.0
            if ready is not None:
                self.watch(fd, ready)

    def leave(self, fd: int) -> None:
        """Removes a connection that ends."""
        self.unwatch(fd)
        self._at_once.pop(fd, None)
        if (later := self._demoted.pop(fd, None)) is not None:
            later.cancel()

    def charge(self, spent_s: float) -> None:
        """Charges seconds of the loop to the connections that are served in turns."""
        left_s = self._allowances.in_turns.charge(spent_s, self._loop.time())
        if left_s <= 0 and self._rest is None and not self._closed:
            self._loop.remove_reader(self._epoll.fileno())
            rest_s = (TURN_S - left_s) / self._allowances.in_turns.share
            self._rest = self._loop.call_later(rest_s, self._rested)

    def charge_task(self, fd: int, spent_s: float) -> None:
        """Charges a connection for one step of its task (``EachStep``)."""
        spent_s *= A_REQUEST_COUNTS
        if fd in self._at_once:
            self._charge_at_once(fd, spent_s)
        else:
            self.charge(spent_s)

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
        later = self._loop.call_later(DEMOTED_FOR_S, self.establish, most)
        self._demoted[most] = later
        self._at_once = dict.fromkeys(self._at_once, 0.0)

    async def mine(self, fd: int) -> None:
        """Waits for a turn of the loop in which no other task of this user's begins.

        Tasks of old and of new connections alternate, so neither kind delays the other for long.
        Tasks of new connections wait while the allowance is used up.
        """
        if not self._given and (self._rest is None or fd in self._at_once):
            self._given = True
            self._give_next()
            return
        turn: asyncio.Future[None] = self._loop.create_future()
        self._waiting.add(fd, turn, old=fd in self._at_once)
        await turn

    def close(self) -> None:
        """Stops watching all connections."""
        self._closed = True
        for timer in (self._rest, *self._demoted.values()):
            if timer is not None:
                timer.cancel()
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _give(self) -> None:
        """Gives a turn of the loop to the task that has waited longest."""
        self._given = self._waiting.wake_next(young=self._rest is None) is not None
        if self._given:
            self._give_next()

    def _give_next(self) -> None:
        allowances = self._allowances
        if allowances.in_turns.is_low or allowances.at_once.is_low:
            self._loop.call_later(APART_S, self._give)
        else:
            self._loop.call_soon(self._give)

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
            # The connection was readable some ms ago, and may have been closed since. If so, its
            # number is not watched any more, or belongs to a new connection: ``ready`` of that one
            # finds no message and does nothing.
            ready = self._watched.get(self._line.popleft())
            if ready is not None:
                ready()
            if self._line and time.monotonic() >= began + TURN_S:
                break
        self.charge(time.monotonic() - began)
