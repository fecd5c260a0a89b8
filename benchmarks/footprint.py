"""Footprint: what balloond takes at 1, 16, 64 and 256 VMs, and how soon each of them is told.

The guests are tiny; what is counted is balloond's own memory and time.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median

from benchmarks.figures import Figure, Goal, at_most, missing, of_count, of_samples
from benchmarks.processes import Balloond, cpu_s, memory_kib
from benchmarks.tiny_guest import VM_MEM, TinyGuest, connect, raise_file_limit, wait_told

COUNTS = (1, 16, 64, 256)
RUNS = 5
"""Each with a daemon, devices and guests of its own."""
SIGNALS = 2
"""In each run: the first finds everything cold."""
BETWEEN_S = 1.1
"""The policy listens again one second after a step, and up to 50 ms more."""

USS_GOAL, RSS_GOAL, STEP_GOAL = at_most(2), at_most(32), at_most(150)
MIB = 1024
"""KiB in one."""


@dataclass(slots=True)
class Samples:
    """What was counted at one number of VMs, over all runs; memory in MiB."""

    controller_rss: list[float] = field(default_factory=list)
    controller_pss: list[float] = field(default_factory=list)
    uss_ready: list[float] = field(default_factory=list)
    uss_after: list[float] = field(default_factory=list)
    pss: list[float] = field(default_factory=list)
    last_ms: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)


def figures() -> Iterator[Figure]:
    """Measures; yields as it goes."""
    raise_file_limit()
    costs = {}
    for count in COUNTS:
        samples = Samples()
        try:
            for _ in range(RUNS):
                _run(count, samples)
        except (OSError, TimeoutError) as err:
            yield missing(f"{count} VMs", "MiB", str(err), USS_GOAL)
            continue
        costs[count] = median(samples.cpu_us)
        yield from _of(count, samples)
    if 16 in costs and 256 in costs:
        # "Flat": the noise of a median is let pass.
        yield of_count(
            "256 VMs: CPU per VM and signal, to 16 VMs'", "×", costs[256] / costs[16], at_most(1.2)
        )


def _run(count: int, samples: Samples) -> None:
    """One daemon with so many guests, from nothing to after the last signal."""
    with Balloond(["--vm-mem", VM_MEM], woken=True) as daemon:
        guests = connect(count, daemon.socket)
        devices = daemon.wait_devices(count)
        controller = memory_kib(daemon.pid)
        samples.controller_rss.append(controller["Rss"] / MIB)
        samples.controller_pss.append(controller["Pss"] / MIB)
        for device in devices:
            memory = memory_kib(device)
            samples.uss_ready.append(memory["Uss"] / MIB)
            samples.pss.append(memory["Pss"] / MIB)
        for _ in range(SIGNALS):
            last_s, cost_s = _signal(daemon, guests, devices)
            samples.last_ms.append(last_s * 1000)
            samples.cpu_us.append(cost_s / count * 1e6)
        samples.uss_after += [memory_kib(device)["Uss"] / MIB for device in devices]
        for guest in guests:
            guest.close()


def _of(count: int, samples: Samples) -> Iterator[Figure]:
    name = f"{count} VMs" if count > 1 else "1 VM"
    goal: Goal | None = STEP_GOAL if count == max(COUNTS) else None
    yield of_samples(f"{name}: controller, RSS", "MiB", samples.controller_rss, RSS_GOAL)
    yield of_samples(f"{name}: controller, PSS", "MiB", samples.controller_pss)
    yield of_samples(f"{name}: device, USS when ready", "MiB", samples.uss_ready)
    yield of_samples(f"{name}: device, USS after work", "MiB", samples.uss_after, USS_GOAL)
    yield of_samples(f"{name}: device, PSS", "MiB", samples.pss)
    yield of_samples(f"{name}: signal to the last VM's first step", "ms", samples.last_ms, goal)
    yield of_samples(f"{name}: CPU per VM and signal", "µs", samples.cpu_us)


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
