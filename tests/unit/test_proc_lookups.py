"""Where the daemon looks up names of other processes in /proc, read from the sources.

Such a lookup may wait for ever, so only children of the controller make one.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "balloon_daemon"


IN_CHILDREN = {"linux.process_lookups", "guests.driven.process_orders"}
"""The modules that look such names up, which nobody else's process may run."""

NAMES_OF_THE_DIRECTORY = {
    "guests.driven.lookups": 1,  # Where its children look.
    "linux.namespaces": 1,  # What devices mount something over.
    "linux.walked_path": 1,  # Where its walk, in a child, follows no link.
}

OTHER_PROGRAMS = ("ctl", "fake_guest")
"""They serve no VMs."""

BY_PATH = {f"linux.libc.{name}" for name in ("blocks_of", "inode_of", "size_of")}
"""They ask the kernel about a path in /proc/PID/fd."""

ALLOWED = {
    # Who may import what looks names up, and why no lookup happens in the controller.
    "linux.process_lookups": {"guests.driven.process_orders", "linux.measuring_child"},
    "linux.process_lookups.blocks_in": {"linux.measuring_child"},  # Its child calls it.
    "guests.driven.process_orders": {"guests.driven.path_orders"},
    # It hands the function to children.
    "guests.driven.path_orders.answers": {"guests.driven.lookups"},
    "guests.driven.lookups.ask_here": {"guests.driven.discovery"},  # For ``--check``.
} | {name: IN_CHILDREN for name in BY_PATH}


def lines_with_paths(text: str) -> set[int]:
    """The lines of a module that make a path of some process in /proc; "/proc/self" is its own. A
    text with blanks is no path but a sentence."""
    tree = ast.parse(text)
    lines = set[int]()
    for node in ast.walk(tree):
        match node:
            case ast.JoinedStr(values=parts):
                whole = "".join(
                    str(part.value) if isinstance(part, ast.Constant) else "{}" for part in parts
                )
            case ast.Constant(value=str(whole)):
                pass
            case _:
                continue
        is_path = any(each in whole for each in ("/proc/{", "/proc/%"))
        if (is_path and " " not in whole) or whole in ("/proc", "/proc/"):
            lines.add(node.lineno)
    return lines


def imported(path: Path) -> Iterator[str]:
    """All that a module imports from the package: modules, and names inside modules."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module.removeprefix("balloon_daemon.")
            for alias in node.names:
                yield f"{node.module}.{alias.name}".removeprefix("balloon_daemon.")


def modules() -> dict[str, Path]:
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def in_the_daemon() -> list[str]:
    return [name for name in modules() if name.partition(".")[0] not in OTHER_PROGRAMS]


@pytest.mark.parametrize("name", sorted(set(in_the_daemon()) - IN_CHILDREN))
def test_module_makes_no_path_of_another_process(name: str) -> None:
    found = lines_with_paths(modules()[name].read_text())
    assert len(found) == NAMES_OF_THE_DIRECTORY.get(name, 0), found


@pytest.mark.parametrize("name", in_the_daemon())
def test_module_imports_nothing_that_looks_names_of_processes_up(name: str) -> None:
    wrong = [each for each in imported(modules()[name]) if name not in ALLOWED.get(each, {name})]
    assert wrong == []


@pytest.mark.parametrize(
    "line",
    [
        'os.stat(f"/proc/{pid}")',
        'FigureFile(f"/proc/{pid}/io")',
        'Path("/proc") / str(pid)',
        'os.open("/proc/" + str(pid), os.O_RDONLY)',
        'open("/proc/%d/stat" % pid)',
        'open("/proc/{}/stat".format(pid))',
    ],
)
def test_path_of_another_process_is_found(line: str) -> None:
    assert lines_with_paths(line) == {1}


@pytest.mark.parametrize(
    "line",
    ['open(f"/proc/self/fd/{fd}")', 'open("/proc/meminfo")', 'why = f"no file in /proc/{pid}/fd"'],
)
def test_own_process_host_and_sentence_are_none(line: str) -> None:
    assert lines_with_paths(line) == set()
