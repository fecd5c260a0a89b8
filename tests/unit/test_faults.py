"""The markers of faults, and the page's cells that are made from them."""

from pathlib import Path

import pytest

from tests.harness.faults import ROOT, Mark, written

HEAD = "| fault | what happens | what the user sees | shown by |\n|---|---|---|---|\n"


def mark(fault: str, test: str, file: str = "test_a.py") -> Mark:
    return Mark(fault, Path(ROOT / "tests" / "kernel" / file), test)


@pytest.mark.parametrize("last", ["|", " |", "`test_old.py: test_old` |", "x |"])
def test_last_cell_is_written_and_no_other_whatever_it_was(last: str) -> None:
    page = f"{HEAD}| disk full | nothing | a line |{last}\n"
    marks = [mark("disk", "test_one"), mark("disk full", "test_two")]

    assert written(page, marks) == (
        f"{HEAD}| disk full | nothing | a line | `test_a.py: test_one`, `test_two` |\n"
    )


def test_file_without_a_test_in_the_last_cell_stays() -> None:
    page = f"{HEAD}| disk full | nothing | a line | `fuzz/tubes.py` |\n"

    assert written(page, []) == page


@pytest.mark.parametrize(
    "row",
    [
        "| disk full | nothing | a line |",
        "| disk full | nothing | a line | `test_a.py: test_one` | more |",
        "| disk full | nothing | a line | `test_a.py: test_one`",
    ],
)
def test_row_without_four_cells_is_refused_by_name(row: str) -> None:
    with pytest.raises(ValueError, match=r"a row has .*disk full"):
        written(f"{HEAD}{row}\n", [])


@pytest.mark.parametrize("fault", ["disk", "net"])
def test_marker_that_begins_no_row_or_several_is_refused(fault: str) -> None:
    page = f"{HEAD}| disk full | n | a | b |\n| disk gone | n | a | b |\n"
    with pytest.raises(ValueError, match=f"test_one: '{fault}' begins"):
        written(page, [mark(fault, "test_one")])
