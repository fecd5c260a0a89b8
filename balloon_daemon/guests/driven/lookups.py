"""Has paths looked up by children, so that no lookup of a name holds the controller up.

Runs in the controller. As a rule there is one child, for as long as something is looked up. A
request that has had no answer for a moment may be waiting for a directory's lock: then another
child carries out the requests about other directories. After a second the child is killed; it may
live on, as some of the kernel's waits end for no signal.
"""

import asyncio
import errno
import os
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from balloon_daemon.guests.driven.control import ControlError, Fault
from balloon_daemon.guests.driven.path_orders import answers
from balloon_daemon.linux.apart import LowNumbers
from balloon_daemon.linux.asked_child import Answers, AskedChild

WITHIN_S = 1.0
"""How long a child may say nothing; a lookup takes some 0.1 ms."""

LATE_S = 0.05
"""After this time without a word from a child, other directories' requests get another child."""

AGAIN_S, AGAIN_MOST_S = 1.0, 60.0
"""How long a directory is left alone after a late lookup: twice as long after each further one."""

MOST_CHILDREN, MOST_OF_ONE_OWNER = 16, 4
"""How many children live, late ones included, and how many late ones there may be for directories
of one owner."""

IDLE_S = 3.0
"""A child that has looked nothing up for so long is ended: it keeps old copies of its parent's
pages."""

_MOST_NOTED = 1024
_Noted = TypeVar("_Noted")
_PARTS_AT_ONCE = 16
"""How many parts of one child's answers are taken in one turn of the event loop."""

Take = Callable[[object], None]
"""Takes a part of an answer."""

Ask = Callable[[Sequence[object], Take, int], Awaitable[None]]
"""Has an order of ``path_orders.py`` carried out: takes the order, what takes its answer's parts,
and the socket to connect or -1. Raises OSError, or ControlError where that takes too long."""


async def ask_here(order: Sequence[object], take: Take, fd: int = -1) -> None:
    """An ``Ask`` that carries orders out in this process, for one that serves no VMs."""
    for part in answers(order, fd, lambda owner: None):
        take(part)


@dataclass(slots=True, eq=False)
class _Request:
    """A request, about a name in a directory; ``done`` has the error, if there is one."""

    order: Sequence[object]
    directory: str
    take: Take
    fd: int
    done: "asyncio.Future[Exception | None]"


@dataclass(slots=True)
class _Turn:
    """What a child does now.

    Attributes:
        request: the request; None: the child is being started.
        began_s: when the child began.
        heard_s: when the child began, or said something.
        overdue: ends the child.
    """

    request: _Request | None
    began_s: float
    heard_s: float
    overdue: asyncio.TimerHandle


class _Late:
    """Which directories are not looked at for now, as a lookup there was late."""

    def __init__(self) -> None:
        self._pauses: dict[str, tuple[float, float]] = {}
        """By directory: until when it is left alone, and for how long that is."""
        self._owners: dict[str, int] = {}
        self._children: list[tuple[AskedChild, str]] = []

    def __len__(self) -> int:
        return len(self._children)

    def owned(self, directory: str, owner: int) -> None:
        """Notes whose the directory is in which a lookup of this one may wait."""
        _note(self._owners, directory, owner)

    def add(self, child: AskedChild, directory: str) -> None:
        """Notes a child that was killed, as its lookup was late."""
        _, for_s = self._pauses.get(directory, (0.0, AGAIN_S / 2))
        for_s = min(2 * for_s, AGAIN_MOST_S)
        _note(self._pauses, directory, (time.monotonic() + for_s, for_s))
        self._children.append((child, directory))

    def was_quick(self, directory: str) -> None:
        """Notes that a lookup was not late."""
        self._pauses.pop(directory, None)

    def refuses(self, directory: str) -> bool:
        """Whether the directory is not to be looked at now."""
        if directory in {late for _, late in self._children}:
            return True
        of_owners = Counter(self._owners.get(late, 0) for _, late in self._children)
        return (
            time.monotonic() < self._pauses.get(directory, (0.0, 0.0))[0]
            or len(self._children) >= MOST_CHILDREN
            or of_owners[self._owners.get(directory, 0)] >= MOST_OF_ONE_OWNER
        )

    def reap(self) -> None:
        """Forgets the children that have ended."""
        self._children = [each for each in self._children if not each[0].is_gone()]


class Lookups:
    """Looks paths up in children.

    Args:
        answers: carries out an order, in a child.
    """

    def __init__(self, answers: Answers = answers) -> None:
        self._answers = answers
        self.low: LowNumbers | None = None
        """Forks the children; None: one is made for the first of them."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._queue: dict[str, deque[_Request]] = {}
        """The requests that wait, by their directories, which take turns."""
        self._turns: dict[AskedChild, _Turn] = {}
        self._idle: list[AskedChild] = []
        self._ended: list[AskedChild] = []
        self._late = _Late()
        self._used_s = 0.0
        self._timers: dict[Callable[[], None], asyncio.TimerHandle] = {}

    async def ask(self, order: Sequence[object], take: Take, fd: int = -1) -> None:
        """As ``Ask``.

        Raises:
            ControlError: the directory is looked at too slowly now, or was lately.
            OSError: the kernel's reason.
        """
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self.close()
            self._loop = loop
        name, path, *_ = order
        assert isinstance(path, str)
        directory = os.path.dirname(path) if name in ("identify", "connect") else path
        request = _Request(order, directory, take, fd, loop.create_future())
        self._queue.setdefault(directory, deque()).append(request)
        self._go_on()
        if (err := await request.done) is not None:
            raise err

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
        while (directory := self._next()) is not None:
            if not self._idle:
                self._start_another()
                return
            request = self._taken(directory)
            child = self._idle.pop()
            self._begin(child, request)
            try:
                child.ask(request.order, request.fd)
            except OSError as err:
                self._over(self._leave(child), err)  # Somebody has killed the child.

    def _next(self) -> str | None:
        """The next directory that has a request and can be looked at.

        Takes no longer where many requests wait: whoever may write to a directory of sockets can
        have hundreds made in a second.
        """
        self._late.reap()
        now_s = time.monotonic()
        slow = {
            turn.request.directory
            for turn in self._turns.values()
            if turn.request is not None and now_s - turn.heard_s >= LATE_S
        }
        # No more than ``MOST_CHILDREN`` are slow, and each that is passed over otherwise is ended.
        for directory in tuple(self._queue):
            requests = self._queue[directory]
            while requests and requests[0].done.done():
                requests.popleft()
            if not requests:
                del self._queue[directory]
            elif self._late.refuses(directory):
                del self._queue[directory]
                for request in requests:
                    self._over(request, ControlError(Fault.PATH_HANGS))
            elif directory not in slow:
                return directory
        return None

    def _taken(self, directory: str) -> _Request:
        """Takes a directory's first request; the next turn is another directory's."""
        requests = self._queue.pop(directory)
        request = requests.popleft()
        if requests:
            self._queue[directory] = requests
        return request

    def _all_waiting(self) -> list[_Request]:
        """Takes all requests that wait."""
        waiting = [request for requests in self._queue.values() for request in requests]
        self._queue.clear()
        return waiting

    def _start_another(self) -> None:
        """Starts a child, if those that there are have been busy for a while."""
        now_s = time.monotonic()
        began_s = max((turn.began_s for turn in self._turns.values()), default=0.0)
        starting = any(turn.request is None for turn in self._turns.values())
        if starting or len(self._turns) + len(self._late) >= MOST_CHILDREN:
            return  # Goes on when one is done or ends.
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
            case [int(number), str(why)]:
                self._leave(child, keep=True)
                child.began()
                self._idle.append(child)
                self._used_s = time.monotonic()
                self._later(IDLE_S, self._look)
                if request is not None:
                    self._late.was_quick(request.directory)
                self._over(request, OSError(number, why) if number else None)
                self._go_on()
            case int(owner) if request is not None:
                self._late.owned(request.directory, owner)
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
        self._end(child, turn.request.directory)
        self._over(turn.request, ControlError(Fault.PATH_HANGS))
        self._go_on()

    def _leave(self, child: AskedChild, *, keep: bool = False) -> _Request | None:
        """Ends a child's turn, and the child, too, unless it is kept; returns its request."""
        turn = self._turns.pop(child)
        turn.overdue.cancel()
        if not keep:
            self._end(child)
        return turn.request

    def _end(self, child: AskedChild, directory: str | None = None) -> None:
        """Kills a child, whose lookup in this directory was late."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(child)
        child.end()
        if directory is None:
            self._ended.append(child)
        else:
            self._late.add(child, directory)
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
"""This process's."""


def _note(notes: dict[str, _Noted], name: str, note: _Noted) -> None:
    notes[name] = note
    if len(notes) > _MOST_NOTED:
        notes.pop(next(iter(notes)))
