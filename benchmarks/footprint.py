"""Footprint: what balloond takes at 1, 16, 64 and 256 VMs, and how soon each of them is told.

The guests are tiny; what is counted is balloond's own memory and time.
"""

import time
from collections.abc import Iterator
from statistics import median

from benchmarks.figures import Figure, Goal, at_most, missing, of_count, of_samples
from benchmarks.processes import Balloond, cpu_s, memory_kib
from benchmarks.tiny_guest import VM_MEM, TinyGuest, connect, raise_file_limit, wait_told

COUNTS = (1, 16, 64, 256)
SIGNALS = 5
BETWEEN_S = 1.1
"""The policy listens again one second after a step, and up to 50 ms more."""

USS_GOAL, RSS_GOAL, STEP_GOAL = at_most(2), at_most(32), at_most(150)
MIB = 1024
"""KiB in one."""


def figures() -> Iterator[Figure]:
    """Measures; yields as it goes."""
    raise_file_limit()
    costs = {}
    for count in COUNTS:
        try:
            found, costs[count] = _with_guests(count)
        except (OSError, TimeoutError) as err:
            yield missing(f"{count} VMs", "MiB", str(err), USS_GOAL)
            continue
        yield from found
    if 16 in costs and 256 in costs:
        # "Flat": the noise of a median of five is let pass.
        yield of_count(
            "256 VMs: CPU per VM and signal, to 16 VMs'", "×", costs[256] / costs[16], at_most(1.2)
        )


def _with_guests(count: int) -> tuple[list[Figure], float]:
    """The figures of so many guests, and the CPU seconds of one signal per VM."""
    with Balloond(["--vm-mem", VM_MEM], woken=True) as daemon:
        guests = connect(count, daemon.socket)
        devices = daemon.wait_devices(count)
        controller = memory_kib(daemon.pid)
        each = [memory_kib(device) for device in devices]
        last, costs = [], []
        for _ in range(SIGNALS):
            last_s, cost_s = _signal(daemon, guests, devices)
            last.append(last_s * 1000)
            costs.append(cost_s / count)
        after = [memory_kib(device)["Uss"] / MIB for device in devices]
        for guest in guests:
            guest.close()
    name = f"{count} VMs" if count > 1 else "1 VM"
    goal: Goal | None = STEP_GOAL if count == max(COUNTS) else None
    found = [
        of_count(f"{name}: controller, RSS", "MiB", controller["Rss"] / MIB, RSS_GOAL),
        of_count(f"{name}: controller, PSS", "MiB", controller["Pss"] / MIB),
        of_samples(f"{name}: device, USS when ready", "MiB", [m["Uss"] / MIB for m in each]),
        of_samples(f"{name}: device, USS after work", "MiB", after, USS_GOAL),
        of_samples(f"{name}: device, PSS", "MiB", [m["Pss"] / MIB for m in each]),
        of_samples(f"{name}: signal to the last VM's first step", "ms", last, goal),
        of_samples(f"{name}: CPU per VM and signal", "µs", [cost * 1e6 for cost in costs]),
    ]
    return found, median(costs)


def _signal(daemon: Balloond, guests: list[TinyGuest], devices: list[int]) -> tuple[float, float]:
    """One low-memory signal: seconds until the last guest was told, CPU seconds of all."""
    processes = [daemon.pid, *devices]
    before = sum(map(cpu_s, processes))
    begun = time.perf_counter()
    daemon.host.set_low()
    told = wait_told(guests)
    daemon.host.set_enough()
    time.sleep(BETWEEN_S)
    return max(told) - begun, sum(map(cpu_s, processes)) - before
