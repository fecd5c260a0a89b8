"""Where the tests wait: no limit is one that a busy machine meets."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.waiting import HANG_S

TESTS = Path(__file__).parents[1]
NAMED = {"deadline_s", "timeout", "timeout_s", "within_s"}
LAST = {"settimeout", "wait", "wait_for", "alarm", "join"}
"""Functions whose last argument is one, where it is a number."""

MEANT = {
    "unit/test_fake_guest_frontend.py": 1,
    "kernel/test_seccomp_judge.py": 1,
    "unit/test_reclaims.py": 1,
    "unit/test_reserves.py": 2,
}
"""Limits that are to be met, by file; those of the last two are on a clock of the test's own."""


def limits(source: str) -> Iterator[tuple[int, float]]:
    """Line and seconds of each limit that is written as a number; 0 is not to wait."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        found = [keyword.value for keyword in node.keywords if keyword.arg in NAMED]
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        found += node.args[-1:] if name in LAST else []
        numbers = [value.value for value in found if isinstance(value, ast.Constant)]
        for seconds in numbers:
            if isinstance(seconds, (int, float)) and seconds > 0:
                yield node.lineno, seconds


@pytest.mark.parametrize(
    "source",
    [
        "wait_until(lambda: x, deadline_s=5, what='it')",
        "subprocess.run(command, timeout=20)",
        "sock.settimeout(5.0)",
        "process.wait(5)",
        "asyncio.wait_for(future, 20)",
    ],
)
def test_limit_is_found_however_it_is_given(source: str) -> None:
    assert [line for line, _ in limits(source)] == [1]


def test_no_limit_is_shorter_than_what_only_a_hang_takes() -> None:
    short: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(TESTS.rglob("*.py")):
        found = [one for one in limits(path.read_text()) if one[1] < HANG_S]
        name = str(path.relative_to(TESTS))
        if len(found) > MEANT.get(name, 0):
            short[name] = found
    assert short == {}
