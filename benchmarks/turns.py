"""How the rows of ``make bench ARGS=compare`` measure two builds: by turns, or side by side.

A build is driven by its command line and its sockets alone, so that it may have been laid out in
any way.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from benchmarks.builds import Build
from benchmarks.processes import Balloond, children_of, cpu_s

Samples = dict[str, float]
"""What one build showed in one run, by the figure's name and unit: ``idle: CPU, %``."""
Pair = Sequence[Build]
Row = Callable[[Pair, int], Iterator[list[Samples]]]
"""(two builds, how many runs) -> for each run, what each build showed."""

STILL_S = 7.0
"""A closer or a looker ends 3 s after its last work, and was seen up to 6 s later."""


def places(run: int) -> tuple[int, int]:
    """Whose turn comes first in a run: each other run begins with the second build."""
    return (1, 0) if run % 2 else (0, 1)


def by_turns(
    measure: Callable[[Build], Samples],
    *,
    times: int = 1,
    most: int = sys.maxsize,
    warm_up: bool = True,
) -> Row:
    """A row of runs that have nothing in common but the machine.

    Args:
        measure: one build's run.
        times: so many runs for each that is asked for: of what takes no time.
        most: not more runs than these: of what is a median already.
        warm_up: measure each build once more, before the first run, for nothing: its files are
            read by then.
    """

    def row(pair: Pair, runs: int) -> Iterator[list[Samples]]:
        for build in pair if warm_up else ():
            measure(build)
        for run in range(min(runs * times, most)):
            found: list[Samples] = [{}, {}]
            for place in places(run):
                found[place] = measure(pair[place])
            yield found

    return row


def shares(daemons: Sequence[Balloond], runs: int, window_s: float) -> Iterator[list[float]]:
    """How much of a processor each daemon with all of its children takes, in %, in the same
    seconds."""
    for _ in range(runs):
        before = [all_cpu_s(daemon) for daemon in daemons]
        begun = time.monotonic()
        time.sleep(window_s)
        took_s = time.monotonic() - begun
        after = [all_cpu_s(daemon) for daemon in daemons]
        yield [used_s(then, now) / took_s * 100 for then, now in zip(before, after, strict=True)]


def used_s(before: dict[int, float], after: dict[int, float]) -> float:
    """CPU seconds between two readings of ``all_cpu_s``; a process that has ended since then
    counts for nothing."""
    return sum(cpu - before.get(pid, 0.0) for pid, cpu in after.items())


def all_cpu_s(daemon: Balloond) -> dict[int, float]:
    """CPU seconds so far of the controller and each of its children."""
    found = {}
    for pid in everybody(daemon):
        with suppress(FileNotFoundError, ProcessLookupError):
            found[pid] = cpu_s(pid)
    return found


def everybody(daemon: Balloond) -> list[int]:
    """The controller and all of its children: template, devices, keeper."""
    return [daemon.pid, *children_of(daemon.pid)]


def wait_still(daemons: Sequence[Balloond]) -> None:
    """Waits until the children are gone that close files or look at processes.

    What the daemons need then is out of the processors' caches, as it is while they serve.
    """
    seen: list[list[int]] = []
    since = time.monotonic()
    while time.monotonic() - since < STILL_S:
        if (now := [everybody(daemon) for daemon in daemons]) != seen:
            seen, since = now, time.monotonic()
        time.sleep(0.1)
