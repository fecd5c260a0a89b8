"""What a run on every Debian says of itself: the counts, the table, and whether it has passed."""

import datetime
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.everywhere.results import BEGIN, END, Counts, Result, read_report, table, written

ROOT = Path(__file__).parents[2]
ON = datetime.date(2026, 11, 28)
GOOD = Result("trixie", "3.13.5", "2.41", "2.6.0", Counts(1234, 0, 5), True, ON)
ROW = "| trixie | 3.13.5 | 2.41 | 2.6.0 | 6.18.44 | 1,234 | 0 | 5 | ok | 2026-11-28 |"

_TESTS = """\
import pytest
def test_passes(): pass
def test_fails(): assert False
@pytest.mark.skip(reason="of its own")
def test_is_skipped(): pass
@pytest.fixture
def broken(): raise OSError
def test_has_an_error(broken): pass
"""


def test_report_of_pytest_is_counted(tmp_path: Path) -> None:
    (tmp_path / "test_any.py").write_text(_TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", "--rootdir", str(tmp_path)]
    subprocess.run(
        [*command, "-p", "no:cacheprovider", f"--junitxml={tmp_path}/report.xml", str(tmp_path)],
        stdout=subprocess.DEVNULL,
    )
    assert read_report(tmp_path / "report.xml") == Counts(passed=1, failed=2, skipped=1)


@pytest.mark.parametrize(
    ("result", "passed"),
    [
        (GOOD, True),
        (replace(GOOD, soaked=None), True),
        (replace(GOOD, soaked=False), False),
        (replace(GOOD, tests=Counts(1234, 1, 0)), False),
        (replace(GOOD, tests=Counts(0, 0, 7)), False),
    ],
    ids=["all", "no soak", "soak fails", "test fails", "nothing tested"],
)
def test_place_passes_if_something_was_tested_and_nothing_failed(
    result: Result, passed: bool
) -> None:
    assert result.passed is passed


def test_table_in_a_page_gets_new_rows_and_keeps_those_of_other_places() -> None:
    page = f"Before.\n\n{BEGIN}\n{END}\n\nAfter.\n"
    first = written(page, [replace(GOOD, place="forky", soaked=False), GOOD], "6.18.44-any")
    assert ROW in first.splitlines()
    second = written(first, [replace(GOOD, tests=Counts(2, 0, 0))], "6.18.44")
    head = table([])
    assert second == "\n".join(
        [
            f"Before.\n\n{BEGIN}",
            *head,
            ROW.replace("trixie", "forky").replace("| ok |", "| FAILED |"),
            ROW.replace("1,234 | 0 | 5", "2 | 0 | 0"),
            f"{END}\n\nAfter.\n",
        ]
    )


def test_page_without_a_place_for_the_table_is_refused() -> None:
    with pytest.raises(ValueError, match="the page has no <!-- made by make test-everywhere -->"):
        written("A page.\n", [GOOD])


def test_place_that_there_is_not_is_told_in_one_line() -> None:
    command = [sys.executable, "-m", "tests.everywhere", "buster"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "python -m tests.everywhere: error: buster: no such place; there are "
        "bookworm, trixie, forky, forky-3.15"
    )
