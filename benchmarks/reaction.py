"""Reaction: from the low-memory signal to the target in the config space to the first page gone.

The driver is part of the measurement, as short as it can be: told of a change, it asks for the
target, gives one buffer of 256 pages up, and waits until the device has used it.
"""

import time
from collections.abc import Iterator

from balloon_daemon.units import GIB, MIB, PAGE_SIZE
from benchmarks.figures import Figure, at_most, of_percentile
from benchmarks.guest_file import GuestFile
from benchmarks.processes import Balloond
from benchmarks.ring_guest import INFLATEQ, RingGuest
from benchmarks.tiny_guest import VM_MEM, VM_MEM_BYTES, wait_told
from benchmarks.traces import descending

EVENTS = 208
MAX_PAGES = GIB // PAGE_SIZE
"""The largest balloon of a VM of 2 GiB: then a new one connects, with an empty balloon."""

SPEED = 20
"""The policy's timers run so much faster, or 200 events would take 200 seconds. How soon it
reacts to a signal does not depend on them; how often it polls does."""

LISTENS_AGAIN_S = 1.1 / SPEED
MEMORY_BYTES = 64 * MIB
"""What of the VM is touched: more than a buffer names."""

QUEUE_SIZE = 16


def figures() -> Iterator[Figure]:
    """Measures; yields as it goes."""
    for woken, how in ((True, "woken by the device"), (False, f"polled every {1000 // SPEED} ms")):
        told, removed = _events(woken=woken)
        goal = at_most(5) if woken else None
        name = f"reaction, {how}"
        for percent in (50, 99):
            yield of_percentile(
                f"{name}: target in the config space, p{percent}", "ms", told, percent
            )
            yield of_percentile(
                f"{name}: first page removed, p{percent}",
                "ms",
                removed,
                percent,
                goal if percent == 99 else None,
            )


def _events(*, woken: bool) -> tuple[list[float], list[float]]:
    """Milliseconds from each signal to the target, and to the first page removed."""
    told: list[float] = []
    removed: list[float] = []
    file = GuestFile.in_memory(VM_MEM_BYTES)
    (buffer, *_) = descending(1).buffers
    buffer = buffer % (MEMORY_BYTES // 2 // PAGE_SIZE)
    with Balloond(["--vm-mem", VM_MEM, "--speed", str(SPEED)], woken=woken) as daemon:
        while len(told) < EVENTS:
            guest = RingGuest(str(daemon.socket), file, QUEUE_SIZE)
            daemon.wait_devices(1)
            pages = 0
            while pages < MAX_PAGES:
                file.touch(MEMORY_BYTES)
                begun = time.perf_counter()
                daemon.host.set_low()
                wait_told([guest])
                # At once: still low when the policy looks again would be a second event.
                daemon.host.set_enough()
                pages = int.from_bytes(guest.frontend.read_config(0, 4), "little")
                told.append((time.perf_counter() - begun) * 1000)
                guest.fill(INFLATEQ, [buffer])
                guest.drain(INFLATEQ)
                removed.append((time.perf_counter() - begun) * 1000)
                time.sleep(LISTENS_AGAIN_S)
            guest.close()
            daemon.wait_devices(0)
    file.close()
    return told, removed
