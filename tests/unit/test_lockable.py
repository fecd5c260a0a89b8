"""Descriptors whose file any user may lock: each close(2) of one looks at all locks."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.faults import fault

PACKAGE = Path(__file__).parents[2] / "balloon_daemon"

OWNERS = ("lockable", "own")
"""What owns a pidfd; ``own`` is the closing child's argument for which ``lockable`` is given."""

ELSEWHERE = {
    "handover/fd_keeper.py": "the keeper's own process, which serves no VM",
    "linux/socket_holder.py": "while balloond starts, before it serves a VM",
}


def not_owned(source: str) -> Iterator[int]:
    """The lines with a pidfd that is not at once one of the ``OWNERS``', and with a closing child
    without an owner for its own."""
    owned = set[int]()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        function = ast.unparse(node.func)
        if function in OWNERS:
            owned.update(id(argument) for argument in node.args)
        elif function == "ClosingChild":
            if "lockable" not in map(ast.unparse, node.args):
                yield node.lineno
        elif function.endswith("pidfd_open") and id(node) not in owned:
            yield node.lineno


@fault("any user puts many locks on a file that balloond reads")
@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_pidfd_is_closed_as_a_file_that_others_may_have_locked(path: Path) -> None:
    name = str(path.relative_to(PACKAGE))
    assert name in ELSEWHERE or list(not_owned(path.read_text())) == []


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("x = lockable(os.pidfd_open(1))", []),
        ("x = os.pidfd_open(1)", [1]),
        ("x = OwnedFd(os.pidfd_open(1))", [1]),
        ("ClosingChild([1], lockable)", []),
        ("\nClosingChild([1])", [2]),
    ],
)
def test_each_pidfd_is_found(source: str, lines: list[int]) -> None:
    assert list(not_owned(source)) == lines
