"""What a VMM's process has open and which threads it has, asked of children."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from balloon_daemon.events.driven import Fault
from balloon_daemon.guests.driven import lookups, process_orders, vmm_process
from balloon_daemon.guests.driven.control import ControlError
from balloon_daemon.guests.driven.host_side import HostSide
from balloon_daemon.guests.driven.lookups import Lookups
from tests.harness.faults import fault
from tests.harness.vmm_files import host_side
from tests.harness.waiting import wait_until

LOCKS, FILES = 3000, 2000

VMM = f"""
import os, resource, sys
from tests.harness.slow_close import lock_many
resource.setrlimit(resource.RLIMIT_NOFILE, ({FILES} + 100, {FILES} + 100))
held = []
for name in ("fd", "task", "."):
    held.append(os.open(f"/proc/self/{{name}}", os.O_RDONLY))
    lock_many(held[-1], {LOCKS})
memory = os.memfd_create("memory-of-this-test")
while os.dup(memory) < {FILES}:
    pass
print(flush=True)
sys.stdin.read()
"""
"""A process that has locked its own directories in /proc, and has many descriptors."""

_opened: list[str] | None = None


def _hear(event: str, arguments: tuple[object, ...]) -> None:
    if _opened is not None and event in ("open", "os.scandir", "os.listdir"):
        path = arguments[0]  # A path, a descriptor or None.
        _opened.append(os.fsdecode(path) if isinstance(path, str | bytes) else str(path))


sys.addaudithook(_hear)


@contextmanager
def opened_here() -> Iterator[list[str]]:
    """All paths that this process opens or lists during the block."""
    global _opened
    opened: list[str] = []
    _opened = opened
    try:
        yield opened
    finally:
        _opened = None


@pytest.fixture
def vmm() -> Iterator[int]:
    with subprocess.Popen(
        [sys.executable, "-c", VMM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        yield process.pid
        process.kill()


@fault("VMM's process puts many locks on its directories in /proc")
def test_directories_that_a_vmms_process_has_locked_are_opened_and_closed_by_a_child(
    vmm: int,
) -> None:
    async def look() -> tuple[Fault | None, int, bool]:
        host = HostSide(await vmm_process.opened(vmm, lookups.LOOKUPS.ask))
        assert (host.disk_read_bytes() or 0) > 0
        fault = await host.look(lookups.LOOKUPS.ask)
        files = await vmm_process.open_files(vmm, ["/memfd:memory-of-this-test"])
        return fault, len(files.found), await vmm_process.has_thread(vmm, vmm)

    with opened_here() as opened:
        found = asyncio.run(look())
    assert found == (None, process_orders.MOST_FOUND, True)
    assert [path for path in opened if path.startswith("/proc")] == []


def answers(order: Sequence[object], fd: int, enters: Callable[[int], None]) -> Iterator[object]:
    """Takes as much processor time for a process as its number has milliseconds."""
    assert isinstance(order[1], int)
    until_s = time.thread_time() + order[1] / 1000
    while time.thread_time() < until_s:
        pass
    yield True


@fault("VMM's process puts many locks on its directories in /proc")
def test_user_whose_processes_take_long_to_look_at_is_refused_and_no_other_user(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lookups, "TAKEN_S", 0.02)
    looks = Lookups(answers)

    async def is_refused(pid: int, user: int) -> bool:
        try:
            await looks.ask(["thread", pid, user, 1], lambda part: None)
        except ControlError as err:
            return err.fault is Fault.PATH_HANGS
        return False

    async def scene() -> list[bool]:
        quick = [await is_refused(pid=1, user=1001) for _ in range(20)]
        slow = [await is_refused(pid=15, user=1002) for _ in range(2)]
        return [*quick, *slow, await is_refused(1, 1002), await is_refused(1, 1001)]

    try:
        assert asyncio.run(scene()) == [False] * 22 + [True, False]
    finally:
        wait_until(looks.close, what="its children end")
        if looks.low is not None:
            looks.low.close()


def test_process_that_cannot_be_looked_at_now_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def refused(order: Sequence[object], take: lookups.Take, fd: int = -1) -> None:
        raise ControlError(Fault.PATH_HANGS)

    with pytest.raises(ControlError, match="listed too slowly") as caught:
        asyncio.run(host_side(os.getppid()).look(refused))
    assert caught.value.fault is Fault.HANGS


def test_process_of_no_number_is_not_asked_for() -> None:
    async def never(order: Sequence[object], take: lookups.Take, fd: int = -1) -> None:
        raise AssertionError(order)

    assert asyncio.run(vmm_process.open_files(0, ["/"], never)) == (False, ())
