"""Huge pages: guest memory on 2 MiB shmem THP, and on hugetlbfs.

THP as a VMM gets it that asks for it: a tmpfs mounted ``huge=advise`` and MADV_HUGEPAGE on an
aligned mapping. A buffer of 1 MiB takes half of a huge page, so the kernel splits it. On
hugetlbfs nothing can be split: a huge page goes when all of its 512 parts are in the balloon.
"""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from balloon_daemon.units import GIB, PAGE_SIZE
from benchmarks import c_programs
from benchmarks.alternation import DEVICE, Runs, alternate
from benchmarks.figures import Figure, at_least, missing, of_count, of_samples, ratios
from benchmarks.guest_file import GuestFile
from benchmarks.kernel_settings import HUGETLB_PAGES, SettingError, setting
from benchmarks.processes import ASKED_OPTIONS, Balloond
from benchmarks.reclaim import QUEUE_SIZE
from benchmarks.ring_guest import RingGuest, area_bytes
from benchmarks.traces import GUEST_BYTES, Trace, every_trace

RUNS = 5
HUGE = 2 << 20
PARTS = HUGE // PAGE_SIZE
TRACES = ("fresh 6.1", "fresh 7.2", "frag64 6.1")
SPEED, TO_C = at_least(10), at_least(0.7)
MEMORY_BYTES = GUEST_BYTES + -(-area_bytes(QUEUE_SIZE) // HUGE) * HUGE


def figures() -> Iterator[Figure]:
    """Measures; yields as it goes."""
    traces = [trace for trace in every_trace() if trace.name in TRACES]
    try:
        floor = c_programs.floor()
    except c_programs.CompilerError as err:
        yield missing("THP", "GiB/s", str(err), SPEED)
        return
    try:
        with _thp() as file:
            yield from _on(file, "THP", traces, floor)
    except (OSError, subprocess.SubprocessError) as err:
        yield missing("THP, fresh 6.1: balloond", "GiB/s", str(err), SPEED)
    try:
        with setting(HUGETLB_PAGES, str(MEMORY_BYTES // HUGE + 8)), _hugetlb() as file:
            yield from _on(file, "hugetlbfs", traces, floor)
    except (OSError, SettingError) as err:
        yield missing("hugetlbfs, fresh 6.1: balloond", "GiB/s", str(err))


@contextmanager
def _thp() -> Iterator[GuestFile]:
    """Guest memory of transparent huge pages; needs root for the mount."""
    with tempfile.TemporaryDirectory(prefix="balloond-thp-") as place:
        options = f"huge=advise,size={MEMORY_BYTES + GIB}"
        command = ["mount", "-t", "tmpfs", "-o", options, "balloond-bench", place]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(f"no tmpfs with huge pages: {done.stderr.strip()}")
        try:
            file = GuestFile.at(Path(place, "memory"), MEMORY_BYTES, huge=True)
            file.touch()
            if file.huge_mapped_kib() * 1024 < MEMORY_BYTES // 2:
                raise OSError(f"the kernel gave {file.huge_mapped_kib()} KiB of huge pages")
            yield file
            file.close()
        finally:
            subprocess.run(["umount", "--lazy", place], check=False)


@contextmanager
def _hugetlb() -> Iterator[GuestFile]:
    """Guest memory of reserved huge pages."""
    fd = os.memfd_create("bench-guest", os.MFD_HUGETLB | os.MFD_HUGE_2MB)
    file = GuestFile(fd, MEMORY_BYTES)
    yield file
    file.close()


def _on(
    file: GuestFile, kind: str, traces: list[Trace], floor: c_programs.CProgram
) -> Iterator[Figure]:
    whole_only = kind == "hugetlbfs"
    with Balloond(ASKED_OPTIONS, woken=True) as daemon:
        guest = RingGuest(str(daemon.socket), file, QUEUE_SIZE)
        daemon.wait_devices(1)
        for trace in traces:
            whole = whole_pages(trace)
            ranges = whole if whole_only else trace.ranges()
            work = {"floor": (floor, ranges)}
            if not whole_only:
                work["whole"] = (floor, whole)
            before = _splits()
            runs = alternate(trace, guest, daemon, work, RUNS)
            after = _splits()
            yield from _of_trace(f"{kind}, {trace.name}", trace, runs, whole)
            if not whole_only:
                for what, count in after.items():
                    # balloond and the floor split alike; the third program splits nothing.
                    each = (count - before[what]) / (2 * RUNS)
                    yield of_count(f"{kind}, {trace.name}: {what} a run", "pages", each)
        guest.close()


def _of_trace(name: str, trace: Trace, runs: Runs, whole: NDArray[np.uint64]) -> Iterator[Figure]:
    gib, took = trace.size_bytes / GIB, runs.elapsed
    goals = name.startswith("THP") and trace.fresh
    speed = [gib / s for s in took[DEVICE]]
    yield of_samples(f"{name}: balloond", "GiB/s", speed, SPEED if goals else None)
    yield of_samples(f"{name}: C with the same calls", "GiB/s", [gib / s for s in took["floor"]])
    if "whole" in took:
        # Whole huge pages only, so fewer bytes than the trace has.
        whole_gib = int(whole[:, 1].sum()) / GIB
        samples = [whole_gib / s for s in took["whole"]]
        yield of_samples(f"{name}: C in whole huge pages", "GiB/s", samples)
    to_c = ratios(runs.cpu["floor"], runs.cpu[DEVICE])
    yield of_samples(f"{name}: speed to C", "×", to_c, TO_C if goals else None)
    note = f"of {trace.size_bytes // PAGE_SIZE:,}; {_why(name)}"
    yield of_count(f"{name}: pages still resident", "pages", runs.resident, note=note)


def _why(name: str) -> str:
    if name.startswith("THP"):
        return "the kernel could not split their huge page"
    return "their huge page is not in the balloon as a whole"


def whole_pages(trace: Trace) -> NDArray[np.uint64]:
    """(offset, length) of each huge page that a trace takes as a whole, in order of completion."""
    order = trace.pages() // PARTS
    pages, counts = np.unique(order, return_counts=True)
    # The place of a page's last part says when it was complete.
    last = {int(page): place for place, page in enumerate(order.tolist())}
    complete = sorted((last[int(page)], int(page)) for page in pages[counts == PARTS])
    return np.array([(page * HUGE, HUGE) for _, page in complete], np.uint64).reshape(-1, 2)


def _splits() -> dict[str, int]:
    lines = dict(line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    names = {"thp_split_page": "splits", "thp_split_page_failed": "splits that failed"}
    return {words: int(lines.get(name, 0)) for name, words in names.items()}
