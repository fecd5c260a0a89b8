"""What a buffer costs an honest VM in two builds: ``python -m benchmarks.compare BEFORE AFTER``.

BEFORE and AFTER are checkouts. Measured is the CPU time of controller and device for each buffer
of 1 MiB that the fake guest gives up, with and without ``--keep-fds``. Both builds run side by
side and work by turns, GiB by GiB, each with this checkout's guest: a pair meets the same weather,
so their ratio counts, and an absolute time says little.
"""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from balloon_daemon.fake_guest.client import FakeGuestProcess
from balloon_daemon.units import GIB, MIB
from benchmarks.fake_reclaim import SPEED, take_and_give_back
from benchmarks.figures import Figure, at_most, of_samples, ratios
from benchmarks.processes import Balloond
from benchmarks.table import show
from benchmarks.traces import RECORDED

BUFFERS = GIB // MIB
TURNS = 4
"""GiB that each of two processes takes in a run; each is the first as often as the other."""

GOAL = at_most(1.05)

Costs = list[tuple[float, float]]
"""µs of controller and device for a buffer, by run."""


def figures(before: Path, after: Path, runs: int) -> Iterator[Figure]:
    """Measures; yields as it goes."""
    for way, options in (("", ()), (" with --keep-fds", ("--keep-fds",))):
        old: Costs = []
        new: Costs = []
        for _ in range(runs):
            costs = _run(before, after, options)
            old.append(costs[0])
            new.append(costs[1])
        for place, what in enumerate(("controller", "device")):
            for name, found in (("before", old), ("after", new)):
                samples = [each[place] for each in found]
                yield of_samples(f"a buffer{way}: {what}, {name}", "µs", samples)
        ratio = ratios([sum(each) for each in new], [sum(each) for each in old])
        yield of_samples(f"a buffer{way}: CPU, after to before", "×", ratio, GOAL)


def _run(before: Path, after: Path, options: tuple[str, ...]) -> Costs:
    """Both builds in new processes, by turns."""
    path = sorted(RECORDED.glob("k61*fresh*.npz"))[0]
    spent = [[0.0, 0.0], [0.0, 0.0]]
    with contextlib.ExitStack() as stack:
        pairs = []
        for checkout in (before, after):
            daemon = stack.enter_context(
                Balloond([*SPEED, *options], woken=True, checkout=checkout)
            )
            arguments = ["--socket", str(daemon.socket), "--mem", "2G", "--touched", "1G"]
            guest = FakeGuestProcess([*arguments, "--refill", "--order", str(path)])
            pairs.append((daemon, stack.enter_context(guest)))
        for turn in range(TURNS):
            for which in (0, 1) if turn % 2 else (1, 0):
                device_s, controller_s, _ = take_and_give_back(*pairs[which])
                spent[which][0] += controller_s
                spent[which][1] += device_s
    each = 1e6 / BUFFERS / TURNS
    return [(controller_s * each, device_s * each) for controller_s, device_s in spent]


def main() -> int:
    """Measures two checkouts; 1 where the second costs more than the goal allows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("before", type=Path, help="a checkout")
    parser.add_argument("after", type=Path, help="another one")
    parser.add_argument("--runs", type=int, default=5, metavar="N")
    args = parser.parse_args()
    found = list(figures(args.before.resolve(), args.after.resolve(), args.runs))
    show(found, Console())
    return any(figure.is_met is False for figure in found)


if __name__ == "__main__":
    sys.exit(main())
