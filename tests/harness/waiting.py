"""Where a test waits: for a condition, with a deadline, and it says what it waited for."""

import select
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

HANG_S = 60.0
"""So long only what hangs takes, on a machine twenty times busier than it should be too. How quick
something is, benchmarks/ measures."""

_POLL_S = 0.01
"""Short beside anything a guest under TCG does (a buffer of 256 pages takes it 2.6 ms)."""


class DeadlineError(AssertionError):
    """The condition did not come true in time; says which, and what was seen last."""


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
        condition: polled; what it returns counts by its truth.
        what: the condition in words, for the failure's message.
        deadline_s: seconds of real time to wait at most.
        seen: asked once, at the deadline, for what there was instead.
        woken_by: a descriptor; the condition is polled at once when it is readable or hung up. The
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
