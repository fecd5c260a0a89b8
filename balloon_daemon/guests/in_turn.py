"""Limits the time that one turn of the event loop spends on work that many VMs may have at once.

Runs in the controller. Each parsed answer (``driven/parsing``) wakes its VM's task in the next
turn: a user of hundreds of VMs whose VMMs answer at once would keep that turn for tens of ms, and
with it every other VM. So tasks have their samples evaluated here: for ``TURN_S`` in one turn, and
users in turn. So are the ends of devices: hundreds that were taken over may end at once, each with
a tube full of reports.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import TypeVar

TURN_S = 0.001
"""How long a turn of the event loop works for VMs. One answer takes up to 0.3 ms, the end of a
device with a full tube 3 ms."""

T = TypeVar("T")
Work = Callable[[], object]


class InTurn:
    """Does work for VMs, for ``TURN_S`` in one turn of the event loop; later work waits for
    the next turns, where users take turns.

    Args:
        clock: gives seconds.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._spent_s = 0.0
        self._waiting: dict[int, deque[Work]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        """The loop that calls ``_next`` in its next turn; None: none does."""

    def do(self, user: int, work: Work) -> None:
        """Does work for a user's VM: now, or in a later turn, after the user's earlier work.

        Args:
            user: the user; -1: unknown.
            work: the work.
        """
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            # The first work of this turn, or of this event loop. If another loop ran before, the
            # work that still waited there is dropped.
            self._loop, self._spent_s = loop, 0.0
            self._waiting.clear()
            loop.call_soon(self._next, loop)
        if self._waiting or self._spent_s >= TURN_S:
            self._waiting.setdefault(user, deque()).append(work)
        else:
            self._carry_out(work)

    async def result(self, user: int, work: Callable[[], T]) -> T:
        """Does work as ``do``; returns its result, or raises its error."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def carried_out() -> None:
            if future.done():
                return  # Whoever waited has been cancelled.
            try:
                future.set_result(work())
            except Exception as err:
                future.set_exception(err)

        self.do(user, carried_out)
        try:
            return await future
        except Exception:
            # The future keeps the error, whose traceback leads to this variable: without it they
            # go now, and not when the garbage collector finds them.
            del future
            raise

    def _carry_out(self, work: Work) -> None:
        began_s = self._clock()
        try:
            work()
        finally:
            self._spent_s += self._clock() - began_s

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        """Does work that waits, for ``TURN_S``; more is left to the next turn."""
        if self._loop is not loop:
            return
        self._spent_s = 0.0
        while self._waiting:
            user, works = next(iter(self._waiting.items()))
            del self._waiting[user]
            work = works.popleft()
            if works:
                self._waiting[user] = works
            try:
                self._carry_out(work)
            except Exception as err:
                # A bug in the work for one VM must not end the work for others.
                loop.call_exception_handler({"message": "work for a VM", "exception": err})
            if self._spent_s >= TURN_S:
                break
        if self._waiting:
            loop.call_soon(self._next, loop)
        else:
            self._loop = None


IN_TURN = InTurn()
"""The work of this process's event loop."""
