"""Waiting without losing a cancellation, and that nothing in balloond waits in another way."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from balloon_daemon.guests.waiting import is_done_within
from tests.fakes.swallowing_waits import swallowing_waits
from tests.harness.faults import fault

PACKAGE = Path(__file__).parents[2] / "balloon_daemon"
LONG_S = 60.0

Waiting = tuple[Coroutine[Any, Any, bool], Callable[[], None]]


def a_future(within_s: float = LONG_S) -> Waiting:
    future = asyncio.get_running_loop().create_future()
    return is_done_within(future, within_s), lambda: future.set_result(None)


@fault("SIGUSR1 arrives as a device ends")
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_cancelled_about_when_what_it_waits_for_comes_is_cancelled(
    turns: int,
) -> None:
    async def play() -> tuple[bool, bool]:
        wait, come = a_future()
        task = asyncio.ensure_future(wait)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        come()
        for _ in range(turns):
            await asyncio.sleep(0)
        late = task.done()
        task.cancel()
        await asyncio.wait([task])
        return late, task.cancelled()

    late, cancelled = asyncio.run(play())
    assert cancelled is not late
    # In the same turn, at the very least, it is not too late.
    assert turns or cancelled


def test_not_in_time_in_a_task_that_was_cancelled_before_is_false() -> None:
    async def clean_up_when_cancelled() -> bool:
        try:
            await asyncio.sleep(LONG_S)
        except asyncio.CancelledError:
            wait, _ = a_future(0.01)
            return await wait  # What a guest's task waits for at its end.
        return True

    async def play() -> bool:
        task = asyncio.ensure_future(clean_up_when_cancelled())
        await asyncio.sleep(0)
        task.cancel()
        return await task

    assert asyncio.run(play()) is False


def test_in_time_is_true() -> None:
    async def play() -> bool:
        wait, come = a_future()
        asyncio.get_running_loop().call_soon(come)
        return await wait

    assert asyncio.run(play()) is True


@fault("SIGUSR1 arrives as a device ends")
def test_nothing_in_the_package_waits_in_a_way_that_loses_a_cancellation() -> None:
    found = {
        str(path.relative_to(PACKAGE)): lines
        for path in sorted(PACKAGE.rglob("*.py"))
        if (lines := swallowing_waits(path.read_text()))
    }
    assert found == {}


@pytest.mark.parametrize(
    "source",
    [
        "import asyncio; asyncio.wait_for(f, 1)",
        "import asyncio as a; a.wait_for(f, 1)",
        "import asyncio as a; a.timeout(1)",
        "import asyncio.tasks; asyncio.tasks.wait_for(f, 1)",
        "import asyncio; wait = asyncio.wait_for",
        "import asyncio; a = asyncio; a.timeout_at(1)",
        "from asyncio import wait_for",
        "from asyncio import wait_for as patiently",
        "from asyncio import timeout as patiently",
        "from asyncio import tasks; tasks.wait_for(f, 1)",
        "from asyncio.timeouts import timeout_at",
        "from asyncio import *",
        "from balloon_daemon.cli.asyncio_lean import asyncio; asyncio.timeout(1)",
        "from balloon_daemon.cli.asyncio_lean import asyncio as a; a.wait_for(f, 1)",
        "import asyncio; getattr(asyncio, 'wait_for')(f, 1)",
        "def f():\n    import asyncio\n    return asyncio.timeout",
    ],
)
def test_way_that_loses_a_cancellation_is_found_whatever_it_is_called(source: str) -> None:
    assert swallowing_waits(source)


@pytest.mark.parametrize(
    "source",
    [
        "import asyncio; asyncio.wait([f], timeout=1)",
        "sock.timeout",
        "import subprocess; subprocess.run(c, timeout=1)",
        "def timeout(): pass",
    ],
)
def test_other_waits_are_left_alone(source: str) -> None:
    assert swallowing_waits(source) == []
