"""The policy compiler's figures, as figures of this table."""

from collections.abc import Iterator
from typing import cast

from benchmarks import bench_seccomp
from benchmarks.figures import Figure, at_most, missing


def figures() -> Iterator[Figure]:
    """Measures; yields as it goes."""
    added = bench_seccomp.filter_figures()
    if not added:
        name = "seccomp: crosvm's rules, getpid always allowed: added"
        yield missing(name, "ns", "there is no C compiler (cc)", at_most(50))
    for record in [*bench_seccomp.compile_figures(), *added]:
        limit = record["goal"]
        yield Figure(
            name=str(record["name"]),
            unit=str(record["unit"]),
            value=cast(float, record["value"]),
            low=cast(float, record["min"]),
            high=cast(float, record["max"]),
            count=cast(int, record["n"]),
            goal=None if limit is None else at_most(float(str(limit).lstrip("≤ "))),
            note=str(record.get("note", "")),
        )
