"""Prepares a history's rows for a picture: the memory of host and VMs over time, and events.
Pure."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from statistics import median
from typing import Any, NamedTuple

from balloon_daemon.listing import name_order
from balloon_daemon.units import parse_size

Row = dict[str, Any]
"""A row of the tables that docs/history.md describes."""

GAP = 2.5
"""Two samples that are farther apart than this many times the median distance have a gap between
them: balloond did not run then."""


class Kind(Enum):
    """What an event was; the value is its name in a picture."""

    GROWS = "grows"
    SHRINKS = "shrinks"
    FINDING = "findings"


class Mark(NamedTuple):
    """An event that a picture shows.

    Attributes:
        at_s: when it was, in seconds since the epoch.
        vm: the VM that it was about.
        kind: what it was.
        target_bytes: the balloon's size that was decided; None: no size was decided.
        message: the log's sentence.
    """

    at_s: float
    vm: str
    kind: Kind
    target_bytes: int | None
    message: str


@dataclass(frozen=True, slots=True)
class Past:
    """A history's samples and events within a time.

    Attributes:
        host: the samples of the host, in lists without gaps (``GAP``).
        vms: each VM's samples, in lists without gaps, by the VM's name.
        marks: what happened, in order of time.
    """

    host: list[list[Row]]
    vms: dict[str, list[list[Row]]]
    marks: list[Mark]

    def span(self) -> tuple[float, float]:
        """The first and the last time, in seconds since the epoch."""
        runs = [*self.host, *(run for runs in self.vms.values() for run in runs)]
        times = [run[end]["at_s"] for run in runs for end in (0, -1)]
        times += [mark.at_s for mark in self.marks]
        return min(times), max(times)


# The sentence of a decision, as records/words/vms.py makes it: the history has nothing else.
_STEP = re.compile(r": balloon (grows|shrinks) to level \d+/\d+, (.+)")


def past_of(samples: Iterable[Row], events: Iterable[Row]) -> Past:
    """Sorts rows of a history by what they are about."""
    of_vms: dict[str, list[Row]] = {}
    for row in samples:
        of_vms.setdefault(row["vm"], []).append(row)
    runs = {vm: _unbroken(of_vms[vm]) for vm in sorted(of_vms, key=name_order)}
    marks = (_mark(row) for row in events)
    return Past(runs.pop("", []), runs, [mark for mark in marks if mark is not None])


def _unbroken(rows: list[Row]) -> list[list[Row]]:
    """Divides samples into lists without gaps (``GAP``)."""
    steps = [after["at_s"] - before["at_s"] for before, after in pairwise(rows)]
    longest_s = GAP * median(steps) if steps else 0.0
    runs = [rows[:1]]
    for before, after in pairwise(rows):
        if 0 <= after["at_s"] - before["at_s"] <= longest_s:
            runs[-1].append(after)
        else:
            runs.append([after])
    return runs


def _mark(row: Row) -> Mark | None:
    at_s, vm, message = row["at_s"], row["vm"], row["message"]
    if row["event"] == "decided":
        step = _STEP.search(message)
        if step is None:
            return None  # This decision leaves the balloon as it is.
        kind = Kind.GROWS if step[1] == "grows" else Kind.SHRINKS
        return Mark(at_s, vm, kind, 0 if step[2] == "0 B" else parse_size(step[2]), message)
    if row["event"] == "vm-attached":
        return None
    return Mark(at_s, vm, Kind.FINDING, None, message)


def staircase(runs: list[list[Row]], marks: Iterable[Mark]) -> list[list[tuple[float, float]]]:
    """A VM's target over time: (seconds since the epoch, bytes), without gaps in one list.

    Samples are a minute apart, decisions may be a second apart: so between two samples the steps
    are taken from the decisions.
    """
    decided = [(mark.at_s, mark.target_bytes) for mark in marks if mark.target_bytes is not None]
    stairs = []
    before_s = float("-inf")
    for number, run in enumerate(runs):
        # A VM may be asked for memory before its first sample, and after its last one.
        end_s = run[-1]["at_s"] if number + 1 < len(runs) else float("inf")
        known = [(row["at_s"], row["target"]) for row in run if row["target"] is not None]
        stairs.append(sorted([*known, *(step for step in decided if before_s < step[0] <= end_s)]))
        before_s = end_s
    return stairs
