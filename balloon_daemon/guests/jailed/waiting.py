"""Waiting for something, but not for ever, without losing that one is to end meanwhile.

A guest's task is cancelled when its controller ends, and may be in the middle of either. Neither
of asyncio's own ways is fit for that: ``wait_for`` of Python 3.11 returns its result, and forgets
the cancellation that came in the same turn of the loop; ``timeout`` raises CancelledError instead
of TimeoutError in a task that was cancelled once before, as in what it has to do at its end.
"""

import asyncio
from typing import Any


async def is_done_within(future: "asyncio.Future[Any]", within_s: float | None) -> bool:
    """Waits for a future, which stays as it is; False where it is not done in time.

    Args:
        future: or a task.
        within_s: seconds; None: as long as it takes.
    """
    done, _ = await asyncio.wait([future], timeout=within_s)
    return bool(done)
