"""Reclaim: how fast memory comes back, against the kernel's limit and a page-by-page device.

For each trace, nine times in turn: balloond's device, the floor in C, page by page in C, all on
the same guest memory, touched anew before each. Ratios are of CPU time, the device's whole process
against the C programs' calls alone: on a machine that others use too, elapsed time says how busy
they are.
"""

from collections.abc import Iterator

from balloon_daemon.units import GIB
from benchmarks import c_programs
from benchmarks.alternation import DEVICE, Runs, alternate
from benchmarks.figures import (
    Figure,
    Goal,
    at_least,
    at_most,
    missing,
    of_count,
    of_samples,
    ratios,
)
from benchmarks.guest_file import GuestFile
from benchmarks.processes import ASKED_OPTIONS, Balloond
from benchmarks.ring_guest import RingGuest, area_bytes
from benchmarks.traces import GUEST_BYTES, Trace, every_trace

RUNS = 9
QUEUE_SIZE = 1024
"""Holds every trace."""

BUFFERS = 512
"""How much of a trace is used, in buffers: half a GiB, so that all of them take a few minutes."""

TO_FLOOR, FRESH_TO_PAGES, TO_PAGES = at_least(0.9), at_least(3), at_least(1)


def figures() -> Iterator[Figure]:
    """Measures; yields as it goes."""
    try:
        floor, pages = c_programs.floor(), c_programs.page_by_page()
    except c_programs.CompilerError as err:
        for trace in every_trace():
            name, to_pages = f"reclaim, {trace.name}", _to_pages(trace)
            yield missing(f"{name}: speed to the floor", "×", str(err), TO_FLOOR)
            yield missing(f"{name}: speed to page by page", "×", str(err), to_pages)
        return
    file = GuestFile.in_memory(GUEST_BYTES + area_bytes(QUEUE_SIZE))
    with Balloond(ASKED_OPTIONS, woken=True) as daemon:
        guest = RingGuest(str(daemon.socket), file, QUEUE_SIZE)
        daemon.wait_devices(1)
        for trace in (trace.first(BUFFERS) for trace in every_trace()):
            work = {
                "floor": (floor, trace.ranges()),
                "pages": (pages, trace.pages().astype("u4")),
            }
            yield from _of_trace(trace, alternate(trace, guest, daemon, work, RUNS))
        guest.close()
    file.close()


def _of_trace(trace: Trace, runs: Runs) -> Iterator[Figure]:
    gib, took = trace.size_bytes / GIB, runs.elapsed
    name = f"reclaim, {trace.name}"
    yield of_samples(f"{name}: balloond", "GiB/s", [gib / s for s in took[DEVICE]])
    yield of_samples(f"{name}: floor in C", "GiB/s", [gib / s for s in took["floor"]])
    yield of_samples(f"{name}: page by page in C", "GiB/s", [gib / s for s in took["pages"]])
    yield of_samples(f"{name}: CPU", "s/GiB", [s / gib for s in runs.cpu[DEVICE]])
    elapsed = ratios(took["floor"], took[DEVICE])
    yield of_samples(f"{name}: elapsed, speed to the floor", "×", elapsed)
    # By CPU time: one thread that never waits takes as long, if it has a core for itself.
    to_floor = ratios(runs.cpu["floor"], runs.cpu[DEVICE])
    yield of_samples(f"{name}: speed to the floor", "×", to_floor, TO_FLOOR)
    to_pages = ratios(runs.cpu["pages"], runs.cpu[DEVICE])
    yield of_samples(f"{name}: speed to page by page", "×", to_pages, _to_pages(trace))
    yield of_count(f"{name}: pages still resident", "pages", runs.resident, at_most(0))


def _to_pages(trace: Trace) -> Goal:
    return FRESH_TO_PAGES if trace.fresh else TO_PAGES
