"""Waits for a future for a limited time, without losing a cancellation of the waiting task.

A guest's task is cancelled when its controller ends, and may be waiting at that moment. asyncio's
own functions do not suit: ``wait_for`` of Python 3.11 swallows a cancellation if the result comes
in the same turn of the loop; ``timeout`` raises CancelledError instead of TimeoutError in a task
that was cancelled once before, such as a task that is cleaning up.
"""

import asyncio
from typing import Any


async def is_done_within(future: "asyncio.Future[Any]", within_s: float | None) -> bool:
    """Waits for a future without changing it; False where it is not done in time.

    Args:
        future: a future or task.
        within_s: seconds; None: without a limit.
    """
    done, _ = await asyncio.wait([future], timeout=within_s)
    return bool(done)
