"""Whether two ways of measuring put policies into the same order. Pure."""

from collections.abc import Mapping
from itertools import combinations, pairwise

ALIKE = 0.1
"""Figures that differ by less than a tenth of the greater one are alike."""


def order(figures: Mapping[str, float], *, least: float, more_is_better: bool = False) -> str:
    """Names from the best figure to the worst: ``a = b < c``.

    Args:
        figures: a figure for each name.
        least: the least difference that counts.
        more_is_better: the greatest figure is the best one.
    """
    ranked = sorted(figures, key=lambda name: figures[name], reverse=more_is_better)
    said = ranked[:1]
    for before, name in pairwise(ranked):
        said += ["=" if alike(figures[before], figures[name], least) else "<", name]
    return " ".join(said)


def contradictions(
    ours: Mapping[str, float], theirs: Mapping[str, float], *, least: float
) -> list[tuple[str, str]]:
    """The pairs of names that are in the one order here and in the other one there.

    Args:
        ours: a figure for each name.
        theirs: the same by the other way of measuring.
        least: the least difference that counts, here and there.
    """
    return [
        (one, other)
        for one, other in combinations([name for name in ours if name in theirs], 2)
        if not alike(ours[one], ours[other], least)
        and not alike(theirs[one], theirs[other], least)
        and (ours[one] < ours[other]) is not (theirs[one] < theirs[other])
    ]


def alike(one: float, other: float, least: float) -> bool:
    """Whether two figures are too near to each other to say which is the better one."""
    return abs(one - other) < max(least, ALIKE * max(abs(one), abs(other)))
