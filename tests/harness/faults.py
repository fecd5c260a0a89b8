"""Marks the tests that show how balloond reacts to a fault: ``@fault("...")`` on each of them.

``docs/reliability.md`` names a fault in the first cell of a row; the marker repeats the beginning
of that cell, as much as belongs to one row only. ``python -m tests.harness.faults`` writes the
last cell of every row from the markers in the sources; ``tests/unit/test_docs.py`` fails where
page and markers differ.
"""

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
SEPARATOR = " | "
CELLS = 4


def fault(name: str) -> pytest.MarkDecorator:
    """Marks a test as one that shows the reaction to a fault.

    Args:
        name: the beginning of the fault's row in docs/reliability.md.
    """
    return pytest.mark.fault(name)


class Mark(NamedTuple):
    """A marker in the sources: the fault's name, and the test's file and name."""

    fault: str
    path: Path
    test: str


def marks() -> Iterator[Mark]:
    """Every marker below tests/, file by file, from the top of each file to its end."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                for decorator in node.decorator_list:
                    match decorator:
                        case ast.Call(ast.Name("fault"), [ast.Constant(str(name))]):
                            yield Mark(name, path, node.name)


def is_row(line: str) -> bool:
    """Whether a line of the page is a fault's row, and no head of a table."""
    return line.startswith("| ") and not line.startswith("| fault |")


def cells(row: str) -> list[str]:
    """The four cells of a fault's row; the last one may be empty.

    Raises:
        ValueError: the row has another number of cells, or does not end with a bar.
    """
    if not row.endswith("|"):
        raise ValueError(f"a row has no bar at its end: {row[:80]!r}")
    found = [cell.strip() for cell in row.removeprefix("|").removesuffix("|").split("|")]
    if len(found) != CELLS:
        raise ValueError(f"a row has {len(found)} cells, not {CELLS}: {row[:80]!r}")
    return found


def written(page: str, marks: Iterable[Mark]) -> str:
    """The page, with the last cell of every row as the markers say.

    What a last cell names beside tests, such as a fuzzer's target, stays.

    Args:
        page: the text of docs/reliability.md.
        marks: the markers.

    Raises:
        ValueError: a marker is the beginning of no row, or of several; a row has not four cells.
    """
    lines = page.split("\n")
    rows = [number for number, line in enumerate(lines) if is_row(line)]
    shown: dict[int, list[Mark]] = {number: [] for number in rows}
    for mark in marks:
        of = [number for number in rows if lines[number][2:].startswith(mark.fault)]
        if len(of) != 1:
            raise ValueError(f"{mark.path}: {mark.test}: {mark.fault!r} begins {len(of)} rows")
        shown[of[0]].append(mark)
    for number in rows:
        *others, last = cells(lines[number])
        beside = re.findall(r"`[\w/]+\.py`", last)
        shown_by = ", ".join([*_names(shown[number]), *beside])
        lines[number] = f"| {SEPARATOR.join([*others, shown_by])} |"
    return "\n".join(lines)


def _names(marked: list[Mark]) -> Iterator[str]:
    """``file: test`` for the first of each file, then the test alone."""
    last = None
    for mark in marked:
        folder = mark.path.relative_to(ROOT / "tests")
        file = folder.name if folder.parts[0] == "kernel" else folder.as_posix()
        yield f"`{mark.test}`" if mark.path == last else f"`{file}: {mark.test}`"
        last = mark.path


def main() -> int:
    """Writes the page anew; 1 where a marker fits no row, or a row is torn."""
    try:
        PAGE.write_text(written(PAGE.read_text(), marks()))
    except ValueError as err:
        print(err, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
