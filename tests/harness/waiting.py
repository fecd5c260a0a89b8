"""Waits for a condition, with a deadline and a message that names the condition."""

import select
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

HANG_S = 60.0
"""Only a hang takes so long, even on a machine twenty times busier than it should be. Speed is
measured in benchmarks/, not here."""

_POLL_S = 0.01
"""Short compared with the work of a guest under TCG (2.6 ms for a buffer of 256 pages)."""


class DeadlineError(AssertionError):
    """The condition did not come true in time; names it, and the state seen last."""


def wait_until(
    condition: Callable[[], T],
    *,
    what: str,
    deadline_s: float = HANG_S,
    seen: Callable[[], object] | None = None,
    woken_by: int | None = None,
) -> T:
    """Waits until a condition holds, and fails the test if it does not in time.

    Args:
        condition: polled; holds when its result is true.
        what: the condition in words, for the failure's message.
        deadline_s: the longest wait, in seconds of real time.
        seen: called once, at the deadline, for a description of the state.
        woken_by: a descriptor; the condition is polled at once when it is readable or hung up. The
            condition must read it empty, or the polling spins.
            condition must read it empty, or the polling spins.

    Returns:
        The condition's first true value.

    Raises:
        DeadlineError: it stayed false until the deadline.
    """
    end = time.monotonic() + deadline_s
    poller = select.poll()
    if woken_by is not None:
        poller.register(woken_by, select.POLLIN)
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            instead = f"; seen last: {seen()}" if seen else ""
            raise DeadlineError(f"not in {deadline_s:g} s: {what}{instead}")
        poller.poll(_POLL_S * 1000)
