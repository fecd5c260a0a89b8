"""Waiting for a condition, with a deadline, woken by a descriptor and never by a sleep."""

import select
import time
from collections.abc import Callable
from typing import TypeVar

from tests.harness.waiting import HANG_S

T = TypeVar("T")


def wait_until(condition: Callable[[], T], fd: int, what: str, within_s: float = HANG_S) -> T:
    """Waits until a condition holds; looks again whenever ``fd`` is readable or hung up.

    Args:
        condition: asked first at once; it must read ``fd`` empty, or this spins.
        fd: what wakes us.
        what: for the failure: what did not happen.
        within_s: seconds until that failure.

    Returns:
        The condition's first true answer.
    """
    deadline = time.monotonic() + within_s
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    while not (answer := condition()):
        left_s = deadline - time.monotonic()
        assert left_s > 0, f"waited {within_s:g} s for: {what}"
        # At least every 20 ms: some conditions come true without a word (a process's state).
        poller.poll(min(left_s, 0.02) * 1000)
    return answer
