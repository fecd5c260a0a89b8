"""The device's own cost for one PFN buffer: everything but the kernel's work on the pages.

In this process, unjailed: the driver makes one buffer of a trace available, the clock starts,
``BalloonDevice.process`` takes it, the clock stops. A builtin that does nothing stands for
``mmap.madvise``.
"""

import os
import time
from collections.abc import Iterator
from statistics import mean, median
from typing import Any, cast

from balloon_daemon.device.balloon import BalloonDevice, RunningQueue
from balloon_daemon.device.reclaim import Reclaimer
from balloon_daemon.fake_guest.ring import DriverQueue, ring_bytes
from balloon_daemon.units import PAGE_SIZE, FrontendAddr, GuestAddr
from balloon_daemon.virtio.balloon import BalloonQueue
from balloon_daemon.virtio.guest_memory import GuestMemory, MemoryRegion
from balloon_daemon.virtio.split_queue import (
    SplitQueue,
    available_bytes,
    descriptors_bytes,
    used_bytes,
)
from benchmarks.figures import Figure, at_most, of_samples
from benchmarks.traces import BUFFER_PFNS, GUEST_BYTES, Trace, every_trace

RUNS = 7
QUEUE_SIZE = 128
FRESH, FRAGMENTED = at_most(10), at_most(25)


class _NoMapping:
    """In the place of a mapping. max() costs what any builtin of three arguments costs."""

    madvise = staticmethod(max)


class _NothingRemoved(Reclaimer):
    """Sorts and merges, and then calls nothing at all."""

    def _remove_runs(self, *_: object) -> None:
        return


def figures() -> Iterator[Figure]:
    """Measures; yields as it goes."""
    traces = every_trace()
    # The goals were set on a machine where this took 11: it tells how fast this one is today.
    plainly = [_plain_us(traces[0]) for _ in range(RUNS)]
    yield of_samples("interpreter: 256 fresh PFNs sorted and merged plainly", "µs", plainly)
    for trace in traces:
        whole = [_cost_us(trace, Reclaimer) for _ in range(RUNS)]
        own = [_cost_us(trace, _NothingRemoved) for _ in range(RUNS)]
        goal = FRESH if trace.fresh else FRAGMENTED
        name = f"device, {trace.name}: cost of a buffer"
        yield of_samples(f"{name}", "µs", own, goal)
        yield of_samples(f"{name} with its calls", "µs", whole)


def _plain_us(trace: Trace) -> float:
    """The mean over a trace's buffers of what anybody would write first, in µs."""
    buffers = [buffer.tolist() for buffer in trace.buffers]
    begun = time.thread_time_ns()
    for pfns in buffers:
        runs = []
        first = last = None
        for pfn in sorted(pfns):
            if last is None or pfn != last + 1:
                if first is not None:
                    runs.append((first, last))
                first = pfn
            last = pfn
        runs.append((first, last))
    return (time.thread_time_ns() - begun) / 1000 / len(buffers)


def _cost_us(trace: Trace, reclaimer_class: type[Reclaimer]) -> float:
    """The mean over a trace's buffers, in µs."""
    memory = bytearray(ring_bytes(QUEUE_SIZE) + BUFFER_PFNS * 4)
    view = memoryview(memory)
    start = GuestAddr(GUEST_BYTES)
    area = GuestMemory([MemoryRegion(start, FrontendAddr(start), len(view), view)])
    # The guest's own pages are an address range only: nothing here reads or removes them.
    pages = MemoryRegion(GuestAddr(0), FrontendAddr(0), GUEST_BYTES, memoryview(b""))
    device_memory = GuestMemory([pages, *area.regions])
    driver = DriverQueue(0, QUEUE_SIZE, area, start)
    call = os.eventfd(0, os.EFD_NONBLOCK)
    running = RunningQueue(0, BalloonQueue.INFLATEQ, _device_ring(driver, area), -1, call)
    maps = cast(Any, [_NoMapping(), _NoMapping()])
    device = BalloonDevice(
        device_memory, reclaimer_class(device_memory, maps, _no_fault), [running], _no_fault
    )
    samples, clock = [], _clock_ns()
    for buffer in trace.buffers:
        view[-BUFFER_PFNS * 4 :] = buffer.astype("<u4").tobytes()
        driver.add([(start + len(view) - BUFFER_PFNS * 4, BUFFER_PFNS * 4)])
        begun = time.thread_time_ns()
        device.process(running)
        samples.append(time.thread_time_ns() - begun - clock)
        driver.collect()
    os.close(call)
    inflated = device.statistics().inflated_pages
    if inflated * PAGE_SIZE != trace.size_bytes:
        raise RuntimeError(f"{inflated} pages taken of {trace.size_bytes // PAGE_SIZE}")
    return mean(samples) / 1000


def _clock_ns() -> float:
    """What asking for the time takes by itself. The thread's own: others may be at work here."""
    return median(-(time.thread_time_ns() - time.thread_time_ns()) for _ in range(1000))


def _device_ring(driver: DriverQueue, memory: GuestMemory) -> SplitQueue:
    ring = driver.ring
    areas = [
        memory.view(ring.descriptors, descriptors_bytes(ring.size)),
        memory.view(ring.available, available_bytes(ring.size)),
        memory.view(ring.used, used_bytes(ring.size)),
    ]
    descriptors, available, used = areas
    assert descriptors is not None
    assert available is not None
    assert used is not None
    return SplitQueue("inflateq", ring.size, descriptors, available, used)


def _no_fault(*what: object) -> None:
    raise RuntimeError(f"a fault where none should be: {what}")


def _hear(_stats: object) -> None:
    return
