"""Serves the VMMs of one user for a moment, then those of other users."""

import asyncio
import select
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from time import monotonic

from balloon_daemon.guests.jailed.two_lines import TwoLines
from balloon_daemon.linux.figures import close_here

TURN_S = 0.0002
"""How long one user's messages are read in one turn of the event loop, and how long a task of that
user then handles requests: other users' virtual CPUs may have to wait for both. An access to the
config space takes some 50 µs."""

AT_ONCE = 16
"""How many connections of a user the event loop watches directly, not by way of the user's epoll
instance. The loop then handles one message of a connection at a time, which takes no longer than a
turn, and a sixth less time than a message by way of the epoll instance (``_take``)."""

ESTABLISHED_S = 2.0
"""How old a connection must be before the event loop watches it directly (``AT_ONCE``). Otherwise
a user could take 16 ms of each turn of the loop: by 16 connections, each with a message that takes
a millisecond to refuse, and by connecting again after each refusal."""

LOOK_AT = 32
"""How many readable connections are taken from the epoll instance at a time."""

OF_THE_LOOP, OF_THE_LOOP_AT_ONCE = 1 / 4, 1 / 2
"""The parts of the event loop's time that one user's connections may use for long: connections
served in turns, and connections that the loop watches directly. A quarter is 5,000 config accesses
a second, enough for a balloon that grows by 5 GiB a second. Without a limit a user who floods
would never let the controller sleep, and the scheduler makes a process that never sleeps wait
milliseconds for its next time on a processor."""

SAVING = 1 / 16
"""The part of the event loop's time that may go into saving what one user's guests have written to
``actual``: some 1,500 states a second. The state of one guest is saved for that 20 times a second
at most."""

ACCEPTING, ACCEPTING_AT_ONCE_S = 1 / 32, 0.2
"""The part of the event loop's time that may go into accepting one user's connections at the
sockets of single VMs, of which there may be hundreds; and how many seconds of accepting a user can
save up, for some hundred VMs that start at the same moment."""

A_REQUEST_COUNTS = 8
"""The factor by which a task's time is charged. A task handles the requests other than config
accesses. A config access takes 50 µs; another request can take 1 ms, and wakes other processes
(the keeper of descriptors, perhaps children that close descriptors). Each of these occupies a
processor that other users' VMs could use."""

SAVED_S, OWED_S = 2.0, 0.1
"""How many seconds of the event loop a user can save up (for some 35 VMs that start at the same
moment), or owe."""

LOW_S, APART_S = SAVED_S / 2, 0.001
"""A user with less than ``LOW_S`` left has sent much for seconds. That user's tasks then run
``APART_S`` apart, the shortest sleep of the event loop. asyncio runs a woken task before it
handles events of epoll, so without a pause another user's config access would wait for two or
three of these tasks."""

DEMOTED_FOR_S = 10.0
"""How long a connection that used too much time is served in turns, like a new one."""

_SPARE: list[select.epoll] = []
"""Empty epoll instances that users without a connection have left, for the next users. All epoll
instances of the host have one inode: any user may put many locks (fcntl(2)) on it, the close(2) of
each instance looks at all of them, and a VMM may connect and hang up over and over. So instances
that ``close_here`` has left open are kept here: no child can close an epoll object of Python's."""

Ready = Callable[[], None]
"""Handles one message of a connection."""


class Allowance:
    """One user's remaining share of the event loop's time; it outlives the user's connections.

    Args:
        share: how many seconds each second adds to the allowance.
        most_s: how many seconds the user can save up; None: ``SAVED_S``.
    """

    def __init__(self, share: float, most_s: float | None = None) -> None:
        self.share = share
        self._most_s = SAVED_S if most_s is None else most_s
        self._saved_s, self._at_s = self._most_s, 0.0

    @property
    def is_low(self) -> bool:
        """Whether less than ``LOW_S`` was left after the last charge."""
        return self._saved_s < LOW_S

    def charge(self, spent_s: float, now_s: float) -> float:
        """Deducts the time spent; returns the seconds left, 0 or less where none are."""
        # Comparisons instead of min() and max(): this method runs for each config access.
        saved_s = self._saved_s + (now_s - self._at_s) * self.share
        saved_s = (saved_s if saved_s < self._most_s else self._most_s) - spent_s
        self._saved_s = saved_s = saved_s if saved_s > -OWED_S else -OWED_S
        self._at_s = now_s
        return saved_s


class Allowances:
    """One user's shares of the loop's time: ``in_turns`` for the connections in the user's epoll
    instance, ``at_once`` for those that the event loop watches directly (``AT_ONCE``), ``reports``
    for what the user's devices report, ``saving`` for storing what its guests write to
    ``actual``, ``accepting`` for accepting connections (``ACCEPTING``)."""

    def __init__(self) -> None:
        self.in_turns = Allowance(OF_THE_LOOP)
        self.at_once = Allowance(OF_THE_LOOP_AT_ONCE)
        self.reports = Allowance(OF_THE_LOOP)
        self.saving = Allowance(SAVING)
        self.accepting = Allowance(ACCEPTING, ACCEPTING_AT_ONCE_S)


class EachStep:
    """Awaits a coroutine, and reports how long each of its steps has kept the event loop.

    A step is the code that runs between two suspensions of the coroutine (PEP 492). Other tasks
    run while it is suspended, and their time is not counted.

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
            began = monotonic()
            try:
                if error is None:
                    awaited = self._coroutine.send(None)
                else:
                    awaited = self._coroutine.throw(error)
            except StopIteration:
                return
            finally:
                # Break the reference cycle of a cancelled task: the error's traceback refers to
                # this frame, and the frame's variable ``error`` to the error.
                error = None
                self._took(monotonic() - began)
            try:
                yield awaited
            except BaseException as thrown:
                error = thrown
            finally:
                # Break another reference cycle: the future's result may be the error that the next
                # step raises (``Inbox.next``).
                awaited = None


class Turns:
    """Decides when the connections of one user are served.

    All connections but the ``AT_ONCE`` oldest are registered with one epoll instance, which the
    event loop watches like any descriptor (epoll(7)). However many of them are readable, the loop
    gets one event, and messages not read in this turn of the loop cost nothing until the next
    turn. These connections are not served while their allowance is used up. When the allowance of
    the oldest connections is used up, the oldest connection that has used most is moved to the
    epoll instance: so a VM that floods does not delay the same user's honest VMs.

    Args:
        allowances: the user's shares of the loop's time.
    """

    def __init__(self, allowances: Allowances) -> None:
        self._allowances = allowances
        self._loop = asyncio.get_running_loop()
        self._epoll = _SPARE.pop() if _SPARE else select.epoll()
        self._at_once: dict[int, float] = {}
        """The connections that the event loop watches directly, each with the seconds used since
        a connection was last moved from here to the epoll instance."""
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
        """Stops calling ``ready`` for a connection, until ``watch`` is called again."""
        if self._watched.pop(fd, None) is None:
            return
        if fd in self._at_once:
            self._loop.remove_reader(fd)
        else:
            self._epoll.unregister(fd)

    def establish(self, fd: int) -> None:
        """Lets the loop directly watch a connection that is ``ESTABLISHED_S`` old, if it watches
        fewer than ``AT_ONCE``.

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
        """Charges event-loop time to the connections in the epoll instance. When they have used up
        their allowance, the loop does not watch that instance for a while."""
        left_s = self._allowances.in_turns.charge(spent_s, self._loop.time())
        if left_s <= 0 and self._rest is None and not self._closed:
            self._loop.remove_reader(self._epoll.fileno())
            rest_s = (TURN_S - left_s) / self._allowances.in_turns.share
            self._rest = self._loop.call_later(rest_s, self._rested)

    def charge_task(self, fd: int, spent_s: float) -> None:
        """Charges a connection for one step of its task (``EachStep``)."""
        spent_s *= A_REQUEST_COUNTS
        if fd in self._at_once:
            self._charge_at_once(fd, spent_s, self._loop.time())
        else:
            self.charge(spent_s)

    def _rested(self) -> None:
        self._rest = None
        self._loop.add_reader(self._epoll.fileno(), self._take)
        if self._waiting.young and not self._given:
            self._given = True
            self._give()

    def _charge_at_once(self, fd: int, spent_s: float, now_s: float) -> None:
        self._at_once[fd] += spent_s
        if self._allowances.at_once.charge(spent_s, now_s) <= 0:
            self._demote()

    def _demote(self) -> None:
        """Moves the connection that has used most to the epoll instance."""
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

        Tasks of connections that the loop watches directly (``AT_ONCE``) and tasks of all others
        alternate, so neither kind delays the other for long. The others' tasks wait while the
        allowance of the epoll instance's connections is used up.
        """
        if not self._given and (self._rest is None or fd in self._at_once):
            self._given = True
            self._give_next()
            return
        turn: asyncio.Future[None] = self._loop.create_future()
        self._waiting.add(fd, turn, old=fd in self._at_once)
        await turn

    def close(self) -> None:
        """Ends the turns; all connections must have left."""
        self._closed = True
        for timer in (self._rest, *self._demoted.values()):
            if timer is not None:
                timer.cancel()
        self._loop.remove_reader(self._epoll.fileno())
        if not close_here(self._epoll.close):
            for fd in list(self._watched):
                self.unwatch(fd)
            _SPARE.append(self._epoll)

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

    # The next two run for each config access: out of cold caches a function costs as much as a
    # system call, so what they would call is written out in them.

    def _take_at_once(self, fd: int, ready: Ready) -> None:
        began = monotonic()
        ready()
        at_once = self._at_once
        if fd in at_once:
            now_s = monotonic()
            at_once[fd] += now_s - began
            if self._allowances.at_once.charge(now_s - began, now_s) <= 0:
                self._demote()

    def _take(self) -> None:
        began, line = monotonic(), self._line
        if not line:
            for fd, _ in self._epoll.poll(0, LOOK_AT):
                line.append(fd)
        while line:
            # The connection was readable some ms ago, and may have been closed since. If so, its
            # number is not watched any more, or belongs to a new connection, whose ``ready`` finds
            # no message and does nothing.
            ready = self._watched.get(line.popleft())
            if ready is not None:
                ready()
            if line and monotonic() >= began + TURN_S:
                break
        now_s = monotonic()
        if self._allowances.in_turns.charge(now_s - began, now_s) <= 0:
            self.charge(0.0)
