"""Has paths and VMMs' processes looked at by children, so that no lookup holds the controller up.

Runs in the controller. As a rule there is one child, for as long as something is looked up. A
request that has had no answer for a moment may be waiting for a directory's lock: then another
child carries out the requests about other places. A place is a directory, all processes of one
user, or /proc, in which the user of a process is looked up. After a second the child is killed; it
may live on, as some of the kernel's waits end for no signal.
"""

import asyncio
import errno
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from balloon_daemon.guests.driven.control import ControlError, Fault
from balloon_daemon.guests.driven.path_orders import answers
from balloon_daemon.guests.vmm_files import Ask as Ask  # Exported again, with ``Take``.
from balloon_daemon.guests.vmm_files import Take as Take
from balloon_daemon.linux.apart import LowNumbers
from balloon_daemon.linux.asked_child import Answers, AskedChild, Passed
from balloon_daemon.linux.user_time import UserTime

WITHIN_S = 1.0
"""How long a child may send no message; a lookup takes some 0.1 ms."""

LATE_S = 0.05
"""After this time without a message from a child, other places' requests get another child."""

AGAIN_S, AGAIN_MOST_S = 1.0, 60.0
"""How long a place is left alone after a late lookup: twice as long after each further one."""

QUICK_S = 0.005
"""A look at a process is charged to the process's user if it takes more seconds of processor time
than this: 500 descriptors take as long."""

TAKEN_S, REGAINED = 1.0, 1 / 50
"""Each user's allowance, in seconds of processor time, for looks at the user's processes that take
more than ``QUICK_S`` each; and how much of it, in seconds, comes back in each second. While it is
used up, no process of that user is looked at. A look at 4,096 descriptors takes 35 ms at most."""

MOST_CHILDREN, MOST_OF_ONE_OWNER = 16, 4
"""The most children, with those that are late; and the most late children in directories of one
owner."""

IDLE_S = 3.0
"""A child that has looked up nothing for so long is ended: while it lives, each page that the
controller has written since the fork exists twice."""

_MOST_NOTED = 1024
_Noted = TypeVar("_Noted")
_PARTS_AT_ONCE = 16
"""How many parts of one child's answers are taken in one turn of the event loop."""


async def ask_here(order: Sequence[object], take: Take, fd: int = -1) -> None:
    """An ``Ask`` that carries orders out in this process; for a process that serves no VMs."""
    for part in answers(order, fd, lambda owner: None):
        take(part)


@dataclass(slots=True, eq=False)
class _Request:
    """A request.

    Attributes:
        order: what a child is to do.
        place: what the lookup may have to wait for: the directory that a name is looked up in, all
            processes of ``user``, or /proc.
        user: the user id of the process that is looked at; None: no process is looked at.
        take: takes the answer's parts.
        fd: the socket to connect; -1: none.
        done: its result is the error; None: the order was carried out.
    """

    order: Sequence[object]
    place: str
    user: int | None
    take: Take
    fd: int
    done: "asyncio.Future[Exception | None]"


@dataclass(slots=True)
class _Turn:
    """What a child does now.

    Attributes:
        request: the request; None: the child is being started.
        began_s: when the child began with the request, or was started.
        heard_s: the same, or when the child last sent a message, if that is later.
        overdue: the timer that kills the child if it sends no message for ``WITHIN_S``.
    """

    request: _Request | None
    began_s: float
    heard_s: float
    overdue: asyncio.TimerHandle


class _Late:
    """Which places are not looked at for now, as a lookup there was late, or many were slow."""

    def __init__(self) -> None:
        self._pauses: dict[str, tuple[float, float]] = {}
        """By place: until when it is left alone, and for how long that is."""
        self._owners: dict[str, int] = {}
        self._children: list[tuple[AskedChild, str]] = []
        self._taken = UserTime(TAKEN_S, REGAINED)

    def __len__(self) -> int:
        return len(self._children)

    def owned(self, place: str, owner: int) -> None:
        """Notes which user owns a place: the directory in which a lookup may wait, or the
        processes."""
        _note(self._owners, place, owner)

    def add(self, child: AskedChild, place: str) -> None:
        """Notes a child that was killed, as its lookup was late."""
        _, for_s = self._pauses.get(place, (0.0, AGAIN_S / 2))
        for_s = min(2 * for_s, AGAIN_MOST_S)
        _note(self._pauses, place, (time.monotonic() + for_s, for_s))
        self._children.append((child, place))

    def was_in_time(self, request: _Request, took_s: float) -> None:
        """Notes that a lookup was not late, and how much processor time it took."""
        self._pauses.pop(request.place, None)
        if request.user is not None and took_s > QUICK_S:
            self._taken.take(request.user, took_s, time.monotonic())

    def refuses(self, request: _Request) -> bool:
        """Whether the place is not to be looked at now."""
        place, user, now_s = request.place, request.user, time.monotonic()
        if place in {late for _, late in self._children}:
            return True
        of_owners = Counter(self._owners.get(late, 0) for _, late in self._children)
        return (
            now_s < self._pauses.get(place, (0.0, 0.0))[0]
            or len(self._children) >= MOST_CHILDREN
            or of_owners[self._owners.get(place, 0)] >= MOST_OF_ONE_OWNER
            or (user is not None and self._taken.is_used_up(user, now_s))
        )

    def reap(self) -> None:
        """Forgets the children that have ended."""
        self._children = [each for each in self._children if not each[0].is_gone()]


class Lookups:
    """Looks up paths, and looks at VMMs' processes, in children.

    Args:
        answers: carries out an order, in a child.
    """

    def __init__(self, answers: Answers = answers) -> None:
        self._answers = answers
        self.low: LowNumbers | None = None
        """Forks the children, which inherit no VMM's descriptor; None: made at the first fork."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._queue: dict[str, deque[_Request]] = {}
        """The requests that wait, by their places, which take turns."""
        self._turns: dict[AskedChild, _Turn] = {}
        self._idle: list[AskedChild] = []
        self._ended: list[AskedChild] = []
        self._late = _Late()
        self._used_s = 0.0
        self._timers: dict[Callable[[], None], asyncio.TimerHandle] = {}

    async def ask(self, order: Sequence[object], take: Take, fd: int = -1) -> None:
        """Has an order carried out by a child; an ``Ask``.

        Raises:
            ControlError: the child's answer was late, or the order's place (see the module's
                beginning) is not looked at for now (``_Late``); or ``close`` was called, or the
                kernel allows no child.
            OSError: the kernel's reason.
        """
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self.close()
            self._loop = loop
        place, user = _place(order)
        if user is not None:
            self._late.owned(place, user)
        request = _Request(order, place, user, take, fd, loop.create_future())
        self._queue.setdefault(place, deque()).append(request)
        self._go_on()
        if (err := await request.done) is not None:
            raise _anew(err)

    def close(self) -> bool:
        """Ends all children, for good or until the next request; waits for nothing.

        Returns:
            Whether all children are reaped; else call it again.
        """
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        left = [self._leave(child) for child in list(self._turns)]
        left += self._all_waiting()
        if self._loop is not None and not self._loop.is_closed():
            for request in left:
                self._over(request, ControlError(Fault.PATH_HANGS))
        while self._idle:
            self._end(self._idle.pop())
        self._reap()
        return not self._ended and not self._late

    def _go_on(self) -> None:
        """Hands requests to children, as far as that is possible now."""
        while (place := self._next()) is not None:
            if not self._idle:
                self._start_another()
                return
            request = self._taken(place)
            child = self._idle.pop()
            self._begin(child, request)
            try:
                child.ask(request.order, request.fd)
            except OSError as err:
                self._over(self._leave(child), err)  # Somebody has killed the child.

    def _next(self) -> str | None:
        """The next place that has a request and can be looked at.

        Takes no longer where many requests wait: whoever may write to a directory of sockets can
        have hundreds made in a second.
        """
        self._late.reap()
        now_s = time.monotonic()
        slow = {
            turn.request.place
            for turn in self._turns.values()
            if turn.request is not None and now_s - turn.heard_s >= LATE_S
        }
        # This loop passes over few places. At most ``MOST_CHILDREN`` are slow, and each other
        # place that it passes over leaves ``_queue``: its requests are done, or are refused here.
        for place in tuple(self._queue):
            requests = self._queue[place]
            while requests and requests[0].done.done():
                requests.popleft()
            if not requests:
                del self._queue[place]
            elif self._late.refuses(requests[0]):
                del self._queue[place]
                for request in requests:
                    self._over(request, ControlError(Fault.PATH_HANGS))
            elif place not in slow:
                return place
        return None

    def _taken(self, place: str) -> _Request:
        """Takes a place's first request; the next turn is another place's."""
        requests = self._queue.pop(place)
        request = requests.popleft()
        if requests:
            self._queue[place] = requests
        return request

    def _all_waiting(self) -> list[_Request]:
        """Takes all requests that wait."""
        waiting = [request for requests in self._queue.values() for request in requests]
        self._queue.clear()
        return waiting

    def _start_another(self) -> None:
        """Starts another child, if all children have been busy for ``LATE_S``."""
        now_s = time.monotonic()
        began_s = max((turn.began_s for turn in self._turns.values()), default=0.0)
        starting = any(turn.request is None for turn in self._turns.values())
        if starting or len(self._turns) + len(self._late) >= MOST_CHILDREN:
            return  # ``_go_on`` calls this again when a child has answered or has ended.
        if now_s - began_s < LATE_S:
            self._later(began_s + LATE_S - now_s, self._go_on)
            return
        if self.low is None:
            self.low = LowNumbers()
        try:
            child = AskedChild(self._answers, self.low)
        except OSError as err:
            self._fail(err)
            return
        assert self._loop is not None
        self._loop.add_reader(child, self._hear, child)
        self._begin(child, None)

    def _begin(self, child: AskedChild, request: _Request | None) -> None:
        assert self._loop is not None
        overdue = self._loop.call_later(WITHIN_S, self._overdue, child)
        now_s = time.monotonic()
        self._turns[child] = _Turn(request, now_s, now_s, overdue)

    def _hear(self, child: AskedChild) -> None:
        for _ in range(_PARTS_AT_ONCE):
            try:
                part = child.part()
            except BlockingIOError:
                break
            except OSError as err:
                if child in self._idle:
                    self._idle.remove(child)
                    self._end(child)
                else:
                    self._over(self._leave(child), err)
                self._go_on()
                return
            self._take(child, part)
            if child not in self._turns:
                break

    def _take(self, child: AskedChild, part: object) -> None:
        turn = self._turns[child]
        request = turn.request
        match part:
            case [int(number), str(why), float(took_s)]:
                self._leave(child, keep=True)
                child.began()
                self._idle.append(child)
                self._used_s = time.monotonic()
                self._later(IDLE_S, self._look)
                if request is not None:
                    self._late.was_in_time(request, took_s)
                self._over(request, OSError(number, why) if number else None)
                self._go_on()
            case int(owner) if request is not None:
                self._late.owned(request.place, owner)
            case Passed() if request is not None and not request.done.done():
                request.take(part)  # If nobody waits for them, the files are closed with ``part``.
            case [value] if request is not None and not request.done.done():
                request.take(value)
        if self._turns.get(child) is turn and self._loop is not None:
            turn.heard_s = time.monotonic()
            turn.overdue.cancel()
            turn.overdue = self._loop.call_later(WITHIN_S, self._overdue, child)

    def _overdue(self, child: AskedChild) -> None:
        turn = self._turns.pop(child)
        if turn.request is None:
            self._end(child)
            self._fail(OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)))
            return
        self._end(child, turn.request.place)
        self._over(turn.request, ControlError(Fault.PATH_HANGS))
        self._go_on()

    def _leave(self, child: AskedChild, *, keep: bool = False) -> _Request | None:
        """Ends a child's request, and kills the child unless ``keep``; returns the request."""
        turn = self._turns.pop(child)
        turn.overdue.cancel()
        if not keep:
            self._end(child)
        return turn.request

    def _end(self, child: AskedChild, place: str | None = None) -> None:
        """Kills a child. ``place``: where its lookup was late; None: its lookup was not late."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(child)
        child.end()
        if place is None:
            self._ended.append(child)
        else:
            self._late.add(child, place)
        self._later(IDLE_S, self._look)

    def _over(self, request: _Request | None, err: Exception | None) -> None:
        if request is not None and not request.done.done():
            request.done.set_result(err)

    def _fail(self, err: OSError) -> None:
        """Ends all requests that wait: the kernel allows no child."""
        for request in self._all_waiting():
            self._over(request, ControlError(Fault.PATH_HANGS, err.strerror or ""))

    def _look(self) -> None:
        """Reaps children, and ends those that have been idle for long."""
        self._reap()
        if time.monotonic() - self._used_s >= IDLE_S:
            while self._idle:
                self._end(self._idle.pop())
        if self._idle or self._ended or self._late:
            self._later(IDLE_S, self._look)
        self._go_on()

    def _reap(self) -> None:
        self._ended = [child for child in self._ended if not child.is_gone()]
        self._late.reap()

    def _later(self, after_s: float, call: Callable[[], None]) -> None:
        """Calls a function after so many seconds, unless it will be called before that."""

        def due() -> None:
            del self._timers[call]
            call()

        if call not in self._timers and self._loop is not None and not self._loop.is_closed():
            self._timers[call] = self._loop.call_later(after_s, due)


LOOKUPS = Lookups()
"""The lookups of this process."""


def _place(order: Sequence[object]) -> tuple[str, int | None]:
    """The place that an order is about, and whose process, if it is about one."""
    match order:
        case ["owner", int()]:
            return "/proc", None
        case [_, int(), int(user), *_]:
            return f"processes of user {user}", user
        case ["identify" | "number" | "connect", str(path), *_]:
            return os.path.dirname(path), None
    return str(order[1]), None


def _anew(err: Exception) -> Exception:
    """Another error that says the same (``ControlError.anew``)."""
    if isinstance(err, ControlError):
        return err.anew()
    return OSError(err.errno, err.strerror) if isinstance(err, OSError) else err


def _note(notes: dict[str, _Noted], name: str, note: _Noted) -> None:
    notes[name] = note
    if len(notes) > _MOST_NOTED:
        notes.pop(next(iter(notes)))
