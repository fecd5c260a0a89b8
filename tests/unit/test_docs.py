"""The documentation names tests as its evidence: each of them must be there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
RELIABILITY = ROOT / "docs" / "reliability.md"

_NAMED = re.compile(r"`(?:(?P<file>[\w/]+\.py)(?:: )?)?(?P<test>test_\w+)?`")


def named_tests(text: str) -> set[tuple[Path, str]]:
    """(file, test or nothing) of each `file: test`, `file` and `test` in backticks.

    A test without a file is in the one that was named before it in its line.
    """
    named = set()
    for line in text.splitlines():
        path: Path | None = None
        for match in _NAMED.finditer(line):
            if match["file"] is not None:
                folder = "tests" if "/" in match["file"] else "tests/kernel"
                path = ROOT / folder / match["file"].removeprefix("tests/")
            elif match["test"] is None:
                continue
            assert path is not None, f"{match['test']} is in no file: {line[:80]}"
            named.add((path, match["test"] or ""))
    return named


def test_reliability_names_only_tests_that_there_are() -> None:
    named = named_tests(RELIABILITY.read_text())

    assert len(named) > 100
    assert [path for path, _ in named if not path.is_file()] == []
    missing = {test for path, test in named if test and f"def {test}(" not in path.read_text()}
    assert missing == set()


def test_reliability_names_each_fault_once() -> None:
    rows = [line for line in RELIABILITY.read_text().splitlines() if line.startswith("| ")]

    faults = [row.split(" | ")[0] for row in rows]
    assert len(faults) == len(set(faults))


def test_reliability_has_every_test_of_the_fault_files() -> None:
    text = RELIABILITY.read_text()
    for name in ("test_host_faults.py", "test_vmm_faults.py", "test_guest_floods.py"):
        source = (ROOT / "tests/kernel" / name).read_text()
        for test in re.findall(r"^def (test_\w+)\(", source, re.MULTILINE):
            assert f"{test}`" in text, f"{name}: {test}"
