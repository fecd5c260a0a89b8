"""Idle: CPU and wake-ups of controller and device while nothing happens, for each way to watch.

All three balloonds, one VM each, idle through the same minute, in five parts.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from benchmarks.figures import Figure, at_most, of_samples
from benchmarks.processes import Balloond, cpu_s, wakeups
from benchmarks.tiny_guest import VM_MEM, connect

PARTS = 5
PART_S = 12.0
SETTLE_S = 2.0

_WAYS: dict[str, dict[str, Any]] = {
    "polled every second": {},
    "woken by the device": {"woken": True},
    "MemAvailable and PSI": {"meminfo": True},
}


def figures() -> Iterator[Figure]:
    """Measures; yields as it goes."""
    with ExitStack() as stack:
        watched = {}
        for way, arguments in _WAYS.items():
            daemon = stack.enter_context(Balloond(["--vm-mem", VM_MEM], **arguments))
            for guest in connect(1, daemon.socket):
                stack.callback(guest.close)
            watched[way] = (daemon.pid, *daemon.wait_devices(1))
        time.sleep(SETTLE_S)
        shares: dict[str, list[float]] = {way: [] for way in _WAYS}
        rates: dict[str, list[float]] = {way: [] for way in _WAYS}
        for _ in range(PARTS):
            before = {way: _used(pids) for way, pids in watched.items()}
            begun = time.monotonic()
            time.sleep(PART_S)
            took = time.monotonic() - begun
            for way, pids in watched.items():
                cpu, woken = _used(pids)
                shares[way].append((cpu - before[way][0]) / took * 100)
                rates[way].append((woken - before[way][1]) / took)
    for way in _WAYS:
        yield of_samples(f"idle, 1 VM, {way}: CPU", "% of a core", shares[way], at_most(0.03))
        # Where the kernel wakes us the only wake-up left is the look once a minute whether it
        # still can: without it a device file that went away would never be noticed.
        goal = at_most(0.1 if way == "woken by the device" else 1.2)
        yield of_samples(f"idle, 1 VM, {way}: wake-ups", "1/s", rates[way], goal)


def _used(pids: tuple[int, ...]) -> tuple[float, int]:
    return sum(map(cpu_s, pids)), sum(map(wakeups, pids))
