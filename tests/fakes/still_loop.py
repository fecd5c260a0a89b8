"""An event loop that stands still until a test moves its time."""

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import Any, TypeVarTuple

Arguments = TypeVarTuple("Arguments")


class StillLoop(asyncio.BaseEventLoop):
    """An event loop with timers and a clock only; it waits for nothing else.

    Attributes:
        now_s: the time; any number, like CLOCK_MONOTONIC's.
        failures: the errors that callbacks have raised.
        readers: the callbacks for readable descriptors; a test calls them.
    """

    def __init__(self) -> None:
        super().__init__()
        # Close the real loop: only the methods defined here work.
        self.close()
        self.now_s = 1000.0
        self.failures: list[str] = []
        self.readers: dict[int, Callable[[], object]] = {}
        self._timers: list[asyncio.TimerHandle] = []

    def time(self) -> float:
        return self.now_s

    def call_at(
        self,
        when: float,
        callback: Callable[[*Arguments], object],
        *args: *Arguments,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        self._timers.append(asyncio.TimerHandle(when, callback, args, self, context))
        return self._timers[-1]

    def call_later(
        self,
        delay: float,
        callback: Callable[[*Arguments], object],
        *args: *Arguments,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(self.now_s + delay, callback, *args, context=context)

    def add_reader(
        self, fd: Any, callback: Callable[[*Arguments], object], *args: *Arguments
    ) -> None:
        self.readers[fd] = lambda: callback(*args)

    def remove_reader(self, fd: Any) -> bool:
        return self.readers.pop(fd, None) is not None

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.failures.append(repr(context["exception"]))

    def advance(self, seconds: float = 0.0) -> None:
        """Lets time go by, timer after timer, each at its time."""
        end_s = self.now_s + seconds
        while due := [t for t in self._timers if not t.cancelled() and t.when() <= end_s]:
            timer = min(due, key=lambda timer: timer.when())
            self._timers = [t for t in self._timers if t is not timer and not t.cancelled()]
            self.now_s = max(self.now_s, timer.when())
            timer._run()
        self.now_s = end_s

    def get_debug(self) -> bool:
        return False

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """asyncio's own loops count cancelled timers here; this loop ignores them."""
