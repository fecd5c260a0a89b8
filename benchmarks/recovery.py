"""Recovery: from the end of a device, or of a controller, to the next page removed.

It ends in the middle of a queue of buffers that a guest has handed over, and the guest does
nothing about it. What the dead device answered last is left out: the next used entry is its
successor's.
"""

import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from balloon_daemon.units import MIB, PAGE_SIZE
from benchmarks.figures import Figure, at_most, of_percentile
from benchmarks.guest_file import GuestFile
from benchmarks.processes import ASKED_OPTIONS, Balloond
from benchmarks.ring_guest import INFLATEQ, RingGuest
from benchmarks.traces import BUFFER_PFNS, GUEST_BYTES

QUEUE_SIZE = 512
MEMORY_BYTES = 512 * MIB
"""Enough buffers for more than the time in which a signal arrives."""

ENDS_AFTER = 8
"""Buffers answered before the end comes."""

DEATHS_OF_A_GUEST = 5
"""A sixth within a minute would stop its balloon."""

GUESTS = 5
RESTARTS = 10
PATIENCE_S = 30.0


def figures() -> Iterator[Figure]:
    """Measures; yields as it goes."""
    yield from _of("device killed", _device_kills(), 50)
    for number, how in ((signal.SIGKILL, "killed"), (signal.SIGUSR1, "replaced (SIGUSR1)")):
        yield from _of(f"controller {how}, --keep-fds", _controller_ends(number), 500)


def _of(what: str, took_ms: list[float], goal_ms: float) -> Iterator[Figure]:
    name = f"recovery, {what}: to the next page removed"
    yield of_percentile(f"{name}, p50", "ms", took_ms, 50)
    yield of_percentile(f"{name}, p99", "ms", took_ms, 99, at_most(goal_ms))


def _device_kills() -> list[float]:
    took = []
    file = GuestFile.in_memory(GUEST_BYTES)
    with Balloond(ASKED_OPTIONS, woken=True) as daemon:
        for _ in range(GUESTS):
            guest = RingGuest(str(daemon.socket), file, QUEUE_SIZE)
            for _ in range(DEATHS_OF_A_GUEST):
                (device,) = daemon.wait_devices(1)
                kill = partial(os.kill, device, signal.SIGKILL)
                took.append(resumed_ms(daemon, guest, device, kill))
            guest.close()
            daemon.wait_devices(0)
    file.close()
    return took


def _controller_ends(number: int) -> list[float]:
    took = []
    file = GuestFile.in_memory(GUEST_BYTES)
    with Balloond([*ASKED_OPTIONS, "--keep-fds"], woken=True) as daemon:
        guest = RingGuest(str(daemon.socket), file, QUEUE_SIZE)
        for _ in range(RESTARTS):
            (device,) = daemon.wait_devices(1)
            took.append(resumed_ms(daemon, guest, device, partial(daemon.replace, number)))
        guest.close()
        daemon.wait_devices(0)
    file.close()
    return took


def resumed_ms(
    daemon: Balloond,
    guest: RingGuest,
    device: int,
    end: Callable[[], None],
    resumed: Callable[[], object] = lambda: None,
) -> float:
    """Milliseconds from the end to the successor's first used entry.

    Args:
        daemon: serves the guest.
        guest: gives memory up meanwhile.
        device: the process whose end is waited for.
        end: ends it.
        resumed: called at that first used entry.
    """
    # Asked for, as of any guest: a device slows down what nobody wanted.
    daemon.ask_for_all()
    guest.frontend.requests.serve_channel()
    guest.file.touch(MEMORY_BYTES)
    queue = guest.queues[INFLATEQ]
    pages = np.arange(MEMORY_BYTES // PAGE_SIZE - 1, -1, -1, dtype=np.uint32)
    guest.fill(INFLATEQ, list(pages.reshape(-1, BUFFER_PFNS)))
    died = select.poll()
    died.register(pidfd := os.pidfd_open(device), select.POLLIN)
    guest.frontend.kick(INFLATEQ)
    _wait(lambda: queue.outstanding <= MEMORY_BYTES // MIB - ENDS_AFTER, guest)
    begun = time.perf_counter()
    end()
    died.poll(PATIENCE_S * 1000)
    os.close(pidfd)
    queue.collect()
    left = queue.outstanding
    if not left:
        raise RuntimeError("the device answered everything before its end came")
    _wait(lambda: queue.outstanding < left, guest)
    took_ms = (time.perf_counter() - begun) * 1000
    resumed()
    _wait(lambda: not queue.outstanding, guest)
    return took_ms


def _wait(reached: Callable[[], bool], guest: RingGuest) -> None:
    """Looks at the ring again and again: a device calls only at the end of its turn."""
    deadline = time.monotonic() + PATIENCE_S
    while not reached():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{guest.queues[INFLATEQ].outstanding} buffers are not used")
        time.sleep(0.0002)
        guest.queues[INFLATEQ].collect()
