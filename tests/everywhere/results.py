"""What a run of the matrix has found, and its table in CONTRIBUTING.md."""

import datetime
import os
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

BEGIN, END = "<!-- made by make test-everywhere -->", "<!-- until here -->"
_HEAD = (
    "| place | Python | glibc | libseccomp | kernel | passed | failed | skipped | soak | on |",
    "|---|---|---|---|---|---|---|---|---|---|",
)


@dataclass(frozen=True, slots=True)
class Counts:
    """How many tests of a run did what."""

    passed: int
    failed: int
    skipped: int


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one place.

    Attributes:
        soaked: whether the soak lost nothing; None if there was none.
    """

    place: str
    python: str
    glibc: str
    libseccomp: str
    tests: Counts
    soaked: bool | None
    on: datetime.date

    @property
    def passed(self) -> bool:
        """Whether nothing failed, and something was tested."""
        return self.tests.passed > 0 and self.tests.failed == 0 and self.soaked is not False


def read_report(path: Path) -> Counts:
    """Counts the tests of a JUnit report, as pytest writes it.

    Raises:
        ElementTree.ParseError: it is no XML.
    """
    counts = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    for suite in ElementTree.parse(path).getroot().iter("testsuite"):
        for name in counts:
            counts[name] += int(suite.get(name, "0"))
    failed = counts["failures"] + counts["errors"]
    return Counts(counts["tests"] - failed - counts["skipped"], failed, counts["skipped"])


def table(results: list[Result], kernel: str | None = None) -> list[str]:
    """The lines of a Markdown table.

    Args:
        kernel: the version of the kernel that they ran on; None: this one's.
    """
    release = (kernel or os.uname().release).split("-")[0]
    return [*_HEAD, *(_row(result, release) for result in results)]


def _row(result: Result, kernel: str) -> str:
    soaked = {True: "ok", False: "FAILED", None: "none"}[result.soaked]
    tests = result.tests
    cells = (
        *(result.place, result.python, result.glibc, result.libseccomp, kernel),
        *(f"{tests.passed:,}", f"{tests.failed:,}", f"{tests.skipped:,}", soaked, result.on),
    )
    return f"| {' | '.join(map(str, cells))} |"


def written(page: str, results: list[Result], kernel: str | None = None) -> str:
    """The page with the rows of these places new; others' rows stay.

    Raises:
        ValueError: the page has no place for the table.
    """
    before, _, rest = page.partition(BEGIN)
    old, _, after = rest.partition(END)
    if not rest or not after:
        raise ValueError(f"the page has no {BEGIN} … {END}")
    rows = {line.split("|")[1].strip(): line for line in old.splitlines() if line.count("|") > 9}
    for line in table(results, kernel):
        rows[line.split("|")[1].strip()] = line
    head = ("place", "---")
    lines = [*_HEAD, *(line for name, line in rows.items() if name not in head)]
    return "\n".join([f"{before}{BEGIN}", *lines, f"{END}{after}"])
