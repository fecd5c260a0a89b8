"""Two builds beside each other: ``make bench ARGS=compare BASE=REV``.

Both are installed from wheels, and measured by turns in one run: a pair meets the same weather, so
the ratio of the medians counts, and an absolute value says little. ``ARGS='compare --rows
gib,low'`` measures some of the rows.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.builds import BuildError, built, built_here
from benchmarks.figures import Goal
from benchmarks.rows import ALONE, GOALS, ROWS, Samples, goal_of
from benchmarks.table import number
from benchmarks.tiny_guest import raise_file_limit

HEADINGS = ("base", "here", "ratio", "least", "most", "goal", "met")


@dataclass(frozen=True, slots=True)
class Compared:
    """One figure of both builds.

    Attributes:
        name: what was measured.
        unit: of both values.
        base: the base's median.
        here: this build's.
        ratios: of each run, this build's to the base's.
        goal: of the ratio, or with ``alone`` of ``here``; None: the figure is only to be known.
    """

    name: str
    unit: str
    base: float
    here: float
    ratios: tuple[float, ...]
    goal: Goal | None
    alone: bool = False

    @property
    def ratio(self) -> float:
        """Of the medians."""
        return self.here / self.base

    @property
    def is_met(self) -> bool | None:
        """Whether the goal is met; None: there is none."""
        value = self.here if self.alone else self.ratio
        return None if self.goal is None else self.goal.is_met(value)


def compared(runs: Sequence[Sequence[Samples]]) -> list[Compared]:
    """The figures of one row; a figure that one of the builds lacks, or that is 0, is left out."""
    found = []
    for title in runs[0][0].keys() & runs[0][1].keys():
        bases, heres = ([run[which][title] for run in runs] for which in (0, 1))
        if not all(bases):
            continue
        name, unit = title.rsplit(", ", 1)
        alone = goal_of(name, ALONE)
        ratios = tuple(here / base for base, here in zip(bases, heres, strict=True))
        goal = alone or goal_of(name, GOALS)
        medians = median(bases), median(heres)
        found.append(Compared(name, unit, *medians, ratios, goal, alone is not None))
    order = list(runs[0][0])
    return sorted(found, key=lambda each: order.index(f"{each.name}, {each.unit}"))


def table(figures: Iterable[Compared]) -> str:
    """One line for each figure, as wide as its longest name takes; the same in a pipe."""
    lines: list[tuple[str, ...]] = [("figure", *HEADINGS)]
    for each in figures:
        goal = "" if each.goal is None else str(each.goal).replace("≤", "<=")
        lines.append(
            (
                each.name,
                f"{number(each.base)} {each.unit}",
                f"{number(each.here)} {each.unit}",
                *map(number, (each.ratio, min(each.ratios), max(each.ratios))),
                f"here {goal}" if each.alone else goal,
                {True: "yes", False: "NO", None: ""}[each.is_met],
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([name.ljust(widths[0]), *map(str.rjust, rest, widths[1:])]).rstrip()
        for name, *rest in lines
    )


def main(arguments: Sequence[str]) -> int:
    """Measures; 1: a goal is missed."""
    parser = argparse.ArgumentParser(prog="make bench ARGS='compare ...' BASE=REV")
    parser.add_argument("--base", required=True, metavar="REV", help="the commit to compare with")
    parser.add_argument("--rows", default=",".join(ROWS), help="default: %(default)s")
    parser.add_argument("--runs", type=int, default=5, metavar="N")
    args = parser.parse_args(arguments)
    rows = args.rows.split(",")
    if unknown := [name for name in rows if name not in ROWS]:
        parser.error(f"no row {', '.join(unknown)}; there are {', '.join(ROWS)}")
    if args.runs < 1:
        parser.error("--runs: at least one")
    try:
        pair = built(args.base), built_here()
    except BuildError as err:
        parser.error(str(err))
    raise_file_limit()
    figures: list[Compared] = []
    for name in rows:
        print(f"{name} ...", file=sys.stderr, flush=True)
        figures += compared(list(ROWS[name](pair, args.runs)))
    print(table(figures))
    return any(each.is_met is False for each in figures)
