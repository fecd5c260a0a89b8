"""Two builds beside each other: ``make bench ARGS=compare BASE=REV``.

Both are installed from wheels, and measured by turns in one run: a pair meets the same weather, so
the ratio of the medians counts, and an absolute value says little. ``ARGS='compare --rows
gib,low'`` measures some of the rows.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.builds import DIRECTORY, BuildError, built, built_here
from benchmarks.figures import Goal
from benchmarks.rows import ALONE, GOALS, ROWS, goal_of
from benchmarks.table import number
from benchmarks.tiny_guest import raise_file_limit
from benchmarks.turns import Pair, Samples

OUTPUT = DIRECTORY / "table.md"
HEADINGS = ("base", "here", "ratio", "least", "most", "goal", "met", "load")


@dataclass(frozen=True, slots=True)
class Compared:
    """One figure of both builds.

    Attributes:
        name: what was measured.
        unit: of both values.
        base: the base's median.
        here: this build's.
        samples: of each run, this build's to the base's, where the base has anything; with
            ``alone`` this build's.
        goal: of the ratio, or with ``alone`` of ``here``; None: the figure is only to be known.
        load: the machine's load average before the row and after it.
    """

    name: str
    unit: str
    base: float
    here: float
    samples: tuple[float, ...]
    goal: Goal | None
    alone: bool = False
    load: tuple[float, float] = (0.0, 0.0)

    @property
    def ratio(self) -> float | None:
        """Of the medians; None: the base has nothing."""
        return self.here / self.base if self.base else None

    @property
    def is_met(self) -> bool | None:
        """Whether the goal is met; None: there is none, or nothing to hold to it."""
        value = self.here if self.alone else self.ratio
        return None if self.goal is None or value is None else self.goal.is_met(value)


def compared(
    runs: Sequence[Sequence[Samples]], load: tuple[float, float] = (0.0, 0.0)
) -> list[Compared]:
    """The figures of one row; a figure that one of the builds lacks is left out."""
    found = []
    for title in runs[0][0]:
        if title not in runs[0][1]:
            continue
        bases, heres = ([run[which][title] for run in runs] for which in (0, 1))
        name, unit = title.rsplit(", ", 1)
        alone = goal_of(name, ALONE)
        ratios = [here / base for base, here in zip(bases, heres, strict=True) if base]
        goal = alone or goal_of(name, GOALS)
        medians = median(bases), median(heres)
        samples = tuple(heres if alone else ratios)
        found.append(Compared(name, unit, *medians, samples, goal, alone is not None, load))
    return found


def table(figures: Iterable[Compared]) -> str:
    """One line for each figure, as wide as its longest name takes; the same in a pipe.

    Least and most are of the runs' ratios; where the goal is of this build's figure, of that.
    """
    lines: list[tuple[str, ...]] = [("figure", *HEADINGS)]
    for each in figures:
        goal = "" if each.goal is None else str(each.goal).replace("≤", "<=").replace("≥", ">=")
        lines.append(
            (
                each.name,
                f"{number(each.base)} {each.unit}",
                f"{number(each.here)} {each.unit}",
                number(each.ratio),
                *(number(end(each.samples, default=None)) for end in (min, max)),
                f"here {goal}" if each.alone else goal,
                {True: "yes", False: "NO", None: ""}[each.is_met],
                "-".join(f"{load:.1f}" for load in each.load),
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([name.ljust(widths[0]), *map(str.rjust, rest, widths[1:])]).rstrip()
        for name, *rest in lines
    )


def markdown(figures: Iterable[Compared]) -> str:
    """The same for docs/performance.md."""
    lines = [
        "| figure | base | here | ratio | goal | met | load |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in figures:
        ends = "–".join(number(end(each.samples, default=None)) for end in (min, max))
        cells = (
            each.name,
            f"{number(each.base)} {each.unit}",
            f"{number(each.here)} {each.unit}" + (f" ({ends})" if each.alone else ""),
            number(each.ratio) + ("" if each.alone else f" ({ends})"),
            "" if each.goal is None else f"{'here ' if each.alone else ''}{each.goal}",
            {True: "yes", False: "**no**", None: ""}[each.is_met],
            "–".join(f"{load:.1f}" for load in each.load),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def measure(pair: Pair, rows: Iterable[str], runs: int) -> tuple[list[Compared], list[str]]:
    """Measures rows one after the other.

    Returns:
        The figures, and what could not be measured: a row that fails has the figures of its runs
        before that.
    """
    figures: list[Compared] = []
    problems = []
    for name in rows:
        begun, before = time.monotonic(), os.getloadavg()[0]
        found: list[list[Samples]] = []
        try:
            found.extend(ROWS[name](pair, runs))
        except Exception as err:
            problems.append(f"{name}, run {len(found) + 1}: {type(err).__name__}: {err}")
        if found:
            figures += compared(found, (before, os.getloadavg()[0]))
            # After each row: whoever ends a long run early keeps what it has.
            OUTPUT.write_text(markdown(figures))
        print(f"{name}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    return figures, problems


def main(arguments: Sequence[str]) -> int:
    """Measures; 1: a goal is missed, or a row could not be measured."""
    parser = argparse.ArgumentParser(prog="make bench ARGS='compare ...' BASE=REV")
    parser.add_argument("--base", required=True, metavar="REV", help="the commit to compare with")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), help=f"of {', '.join(ROWS)}")
    parser.add_argument("--runs", type=int, default=5, metavar="N")
    args = parser.parse_args(arguments)
    rows = ",".join(args.rows).split(",")
    if unknown := [name for name in rows if name not in ROWS]:
        parser.error(f"no row {', '.join(unknown)}; there are {', '.join(ROWS)}")
    if args.runs < 1:
        parser.error("--runs: at least one")
    try:
        pair = built(args.base), built_here()
    except BuildError as err:
        parser.error(str(err))
    raise_file_limit()
    before = loads()
    figures, problems = measure(pair, rows, args.runs)
    base, here = (build.name for build in pair)
    print(f"base {base}, here {here}; medians of {args.runs} runs by turns")
    print(f"load average {before} before, {loads()} after; {os.cpu_count()} processors")
    print(table(figures))
    for problem in problems:
        print(f"not measured: {problem}")
    print(f"written to {os.path.relpath(OUTPUT)}")
    return bool(problems) or any(each.is_met is False for each in figures)


def loads() -> str:
    """The load averages of the last 1, 5 and 15 minutes."""
    return " ".join(f"{load:.2f}" for load in os.getloadavg())
