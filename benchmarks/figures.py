"""A figure: samples of one quantity, the goal it is held to, and what to say about it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from statistics import median


class Bound(Enum):
    """On which side of a goal a figure has to be."""

    AT_MOST = "≤"
    AT_LEAST = "≥"


@dataclass(frozen=True, slots=True)
class Goal:
    """A limit in the figure's own unit."""

    bound: Bound
    limit: float

    def is_met(self, value: float) -> bool:
        """Whether a value is on the right side of the limit."""
        return value <= self.limit if self.bound is Bound.AT_MOST else value >= self.limit

    def __str__(self) -> str:
        return f"{self.bound.value} {self.limit:g}"


def at_most(limit: float) -> Goal:
    """A goal that lower values meet."""
    return Goal(Bound.AT_MOST, limit)


def at_least(limit: float) -> Goal:
    """A goal that higher values meet."""
    return Goal(Bound.AT_LEAST, limit)


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table.

    Attributes:
        name: what was measured, group first: ``reclaim, fresh 6.1: GiB/s``.
        unit: of the value; ``×`` for a ratio of two figures of the same run.
        value: the median of the samples, or a percentile of them where the name says so; None
            where it could not be measured.
        low: the least sample.
        high: the greatest.
        count: how many samples.
        goal: None for what is only to be known.
        note: why there is no value, or what the value means.
    """

    name: str
    unit: str
    value: float | None
    low: float | None = None
    high: float | None = None
    count: int = 0
    goal: Goal | None = None
    note: str = ""

    @property
    def is_met(self) -> bool | None:
        """Whether the goal is met; None where there is no goal or no value."""
        if self.goal is None or self.value is None:
            return None
        return self.goal.is_met(self.value)

    def as_json(self) -> dict[str, object]:
        """The record of ``build/bench.json``."""
        record: dict[str, object] = {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "min": self.low,
            "max": self.high,
            "n": self.count,
            "goal": None if self.goal is None else str(self.goal),
            "met": self.is_met,
        }
        return record | ({"note": self.note} if self.note else {})


def of_samples(
    name: str, unit: str, samples: Iterable[float], goal: Goal | None = None, note: str = ""
) -> Figure:
    """A figure whose value is the samples' median."""
    every = list(samples)
    if not every:
        return missing(name, unit, "no sample was taken", goal)
    return Figure(name, unit, median(every), min(every), max(every), len(every), goal, note)


def of_percentile(
    name: str, unit: str, samples: Sequence[float], percent: float, goal: Goal | None = None
) -> Figure:
    """A figure whose value is a percentile: the least sample that so many are not above."""
    every = sorted(samples)
    if not every:
        return missing(name, unit, "no sample was taken", goal)
    index = max(0, -int(-len(every) * percent // 100) - 1)
    return Figure(name, unit, every[index], every[0], every[-1], len(every), goal)


def of_count(
    name: str, unit: str, value: float, goal: Goal | None = None, note: str = ""
) -> Figure:
    """A figure that was counted once, and would be the same again."""
    return Figure(name, unit, value, value, value, 1, goal, note)


def missing(name: str, unit: str, why: str, goal: Goal | None = None) -> Figure:
    """A figure that could not be had here, with the reason."""
    return Figure(name, unit, None, goal=goal, note=why)


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Ours to theirs, run by run: both of a pair met the same weather."""
    return [one / other for one, other in zip(ours, theirs, strict=True)]
