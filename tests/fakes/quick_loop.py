"""An event loop that waits for no timer: its time jumps to the next one when nothing is to do."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _JumpingSelector(selectors.SelectSelector):
    """Finds what is readable now, else lets time go by instead of waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise AssertionError("everything waits, and no timer would end that")
        ready = super().select(0)
        if not ready:
            self.now_s += max(0.0, timeout)
        return ready


class QuickLoop(asyncio.SelectorEventLoop):
    """An event loop for tests without real peers, whose answers it would not wait for."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_s


def run_quickly(scene: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine to its end, however far away its timers are."""
    with asyncio.Runner(loop_factory=QuickLoop) as runner:
        return runner.run(scene)
