"""Real guests under a balloon, second by second: what a daemon could see, and what happened."""

import csv
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from balloon_daemon.sizing.need import Figures
from balloon_daemon.units import MIB, PAGE_SIZE

RECORDINGS = Path(__file__).parents[1] / "data" / "recordings"

REFAULTS = 500
"""So many refaults in a second (2 MiB) are a working set that does not fit."""


class Second(NamedTuple):
    """One row of a recording.

    Attributes:
        t_s: the recording's clock; the squeeze begins at 0.
        target_bytes: the balloon's wanted size.
        balloon_bytes: the balloon's size.
        figures: the guest's statistics, on the same clock.
        refaults: pages that had to be read again, since the beginning; None: not known.
    """

    t_s: float
    target_bytes: int
    balloon_bytes: int
    figures: Figures
    refaults: int | None


def recording(name: str) -> list[Second]:
    """The rows of a recording."""
    with open(RECORDINGS / f"{name}.csv", newline="") as file:
        return [_second(row) for row in csv.DictReader(file)]


def first_refaults_s(seconds: list[Second]) -> float:
    """When a guest began to read again what it had lost."""
    known = [(second.t_s, second.refaults) for second in seconds if second.refaults is not None]
    return next(t for (_, before), (t, after) in pairwise(known) if after - before >= REFAULTS)


def _second(row: dict[str, str]) -> Second:
    def number(name: str, unit: int = 1) -> int | None:
        return int(row[name]) * unit if row[name] else None

    t_s = float(row["t"])
    refaults = number("in_refault_file")
    figures = Figures(
        t_s - float(row["age_s"]),
        number("available_mib", MIB),
        number("free_mib", MIB),
        number("swap_in", PAGE_SIZE),
        number("major_faults"),
        number("oom_kills"),
        number("disk_read_kib", 1024),
    )
    if refaults is not None:
        refaults += number("in_refault_anon") or 0
    return Second(
        t_s,
        int(row["target_mib"]) * MIB,
        int(row["balloon_mib"]) * MIB,
        figures,
        refaults,
    )
