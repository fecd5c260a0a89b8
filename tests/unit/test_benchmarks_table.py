"""The table of `make bench`, in a terminal and in a pipe, with UTF-8 and without."""

import io

import pytest
from rich.console import Console

from benchmarks.figures import at_most, missing, of_samples
from benchmarks.table import NAME_COLUMNS, show

FIGURES = [
    of_samples("reclaim, fresh 6.1: speed to the floor", "×", [0.91, 1.0, 1.1], at_most(1.3)),
    of_samples("api, 200 clients at once: a VM's target", "µs", [123456.0], at_most(5000)),
    missing("huge pages: balloond", "GiB/s", "no [pool] of huge pages can be had here " * 4),
]


def shown(encoding: str, *, columns: int | None) -> str:
    """The table; in a pipe where no columns are given."""
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="\n")
    terminal = columns is not None
    show(
        FIGURES, Console(file=out, force_terminal=terminal, width=columns or 80, color_system=None)
    )
    out.seek(0)
    return out.read()


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_table_in_a_pipe_has_each_figure_on_a_line(encoding: str) -> None:
    lines = shown(encoding, columns=None).splitlines()
    (speed,) = [line for line in lines if "speed to the floor" in line]
    assert all(part in speed for part in ("reclaim, fresh 6.1: ", "0.910", "1.10", "yes"))
    (target,) = [line for line in lines if "200 clients" in line]
    assert all(part in target for part in ("api, ", "a VM's target", "123,456", "NO"))
    assert any("no [pool] of huge pages" in line for line in lines)
    assert max(map(len, lines)) < NAME_COLUMNS + 70
    assert lines[-1] == "1 of 2 goals are met"


def test_table_in_a_terminal_of_80_columns_folds_names_alone() -> None:
    lines = shown("utf-8", columns=80).splitlines()
    assert max(map(len, lines)) <= 80
    (target,) = [line for line in lines if "123,456 µs" in line]
    assert target.count("123,456") == 3
