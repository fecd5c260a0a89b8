"""A recording of a real guest under a balloon, second by second: a CSV file's text. Pure."""

import csv
import io
import math
from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise

from balloon_daemon.errors import ConfigError, printable

LEAST_LINES = 10
"""Fewer lines, each a second, show nothing of a guest."""

PAGES_MIB = 256
"""Pages of 4 KiB in a MiB."""

SEEN = ("t", "target_mib", "balloon_mib", "free_mib", "available_mib", "total_mib", "caches_mib")
"""The columns that each line must have. All others may be empty or missing: further figures that
balloond could see, and figures from inside the guest (``in_…``)."""


@dataclass(frozen=True, slots=True)
class Recording:
    """One guest, recorded.

    Attributes:
        name: the file's name, without its directory and its end.
        times: the host's clock in seconds; from 0 on the balloon's target grew.
        columns: the figures by their names, one for each time; NaN: not known.
    """

    name: str
    times: list[float]
    columns: dict[str, list[float]]

    def __getitem__(self, name: str) -> list[float]:
        """A column; NaN throughout if the file has none of that name."""
        return self.columns.get(name) or [math.nan] * len(self.times)

    def has(self, name: str) -> bool:
        """Whether anything is known of a column."""
        return not all(map(math.isnan, self[name]))

    def rates(self, name: str) -> list[float]:
        """How much a counter grows in a second, for each line; 0 for the first. Where lines lack
        the counter, because the guest sent it late, the growth is spread evenly over them."""
        known = [(t, n) for t, n in zip(self.times, self[name], strict=True) if not math.isnan(n)]
        if len(known) < 2:
            return [0.0] * len(self.times)
        at = [t for t, _ in known]
        rates = [0.0]
        for time in self.times[1:]:
            after = min(max(bisect_right(at, time - 1e-9), 1), len(known) - 1)
            (from_s, before), (to_s, then) = known[after - 1], known[after]
            inside = from_s < time <= to_s
            rates.append(max(0.0, then - before) / (to_s - from_s) if inside else 0.0)
        return rates


def parse_recording(name: str, where: str, text: str) -> Recording:
    """Reads a recording.

    Args:
        name: its name.
        where: the file, for messages.
        text: the file's content.

    Raises:
        ConfigError: it is no recording; the message names the file and, if it is one, the line.
    """
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    missing = [column for column in SEEN if not rows or column not in rows[0]]
    if missing:
        raise ConfigError(f"{where}: is no recording of a guest: it has no {', '.join(missing)}")
    columns: dict[str, list[float]] = {column: [] for column in rows[0] if column is not None}
    for number, row in enumerate(rows, 2):
        for column, values in columns.items():
            values.append(_number(row.get(column), column, f"{where}:{number}"))
    times = columns["t"]
    if len(times) < LEAST_LINES or any(then <= time for time, then in pairwise(times)):
        raise ConfigError(
            f"{where}: is no recording of a guest: it needs {LEAST_LINES} lines, in order"
        )
    return Recording(name, times, columns)


def _number(text: str | None, column: str, where: str) -> float:
    needed = column in SEEN
    if not text:
        if needed:
            raise ConfigError(f"{where}: {column} is empty")
        return math.nan
    try:
        number = float(text)
    except ValueError:
        # The column ``need``, the findings of the recording's protection rule, has words.
        number = math.nan
    if needed and not 0 <= abs(number) < 1e9:
        raise ConfigError(f"{where}: {column} is {printable(text)!r}, no number")
    return number
