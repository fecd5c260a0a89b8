"""The tests' own house: which folder may import which, and that nobody imports a test module.

A test module is run, renamed and split as its tests need it. What two of them share stands in
``tests/harness`` (real processes, VMs, rigs, waiting) or ``tests/fakes`` (stand-ins).
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Each folder and the folders that it may import from.
FOLDERS = {
    "tests": {"tests.harness"},  # tests/conftest.py
    "tests.fakes": set[str](),
    "tests.harness": {"tests.fakes"},
    "tests.soak": {"tests.harness", "tests.fakes"},
    "tests.fuzz": {"tests.harness", "tests.fakes", "tests.soak"},
    "tests.unit": {
        *("tests.harness", "tests.fakes", "tests.fuzz", "tests.vm"),
        *("tests.everywhere", "benchmarks"),
    },
    "tests.property": {"tests.harness", "tests.fakes"},
    "tests.kernel": {"tests.harness", "tests.fakes", "tests.fuzz", "tests.soak", "benchmarks"},
    "tests.vm": {"tests.harness"},
    "tests.packages": {"tests.harness", "tests.vm", "tests.everywhere"},
    "tests.everywhere": {"tests.harness", "tests.vm"},
    "benchmarks": {"tests.harness", "tests.vm"},
}


def folder_of(module: str) -> str:
    """The folder that a module of ours lies in, without the folders inside that."""
    words = module.split(".")
    inside = (ROOT / "tests" / words[1]).is_dir() if len(words) > 1 else False
    return ".".join(words[:2]) if words[0] == "tests" and inside else words[0]


def imports(source: str) -> Iterator[tuple[int, str]]:
    """Every module of the tests or the benchmarks that a source imports, with its line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            # A name may be a module: both are asked about.
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            if name.partition(".")[0] in ("tests", "benchmarks") and name != "tests":
                yield node.lineno, name


def is_run_by_pytest(module: str) -> bool:
    """Whether a module is pytest's: of tests or of fixtures."""
    path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    return path.exists() and (path.name.startswith("test_") or path.name == "conftest.py")


def offences(path: Path, source: str) -> Iterator[str]:
    """What a file imports and may not."""
    own = folder_of(".".join(path.with_suffix("").parts))
    for line, module in imports(source):
        where = f"{path}:{line}: imports {module}"
        if is_run_by_pytest(module):
            yield f"{where}, which pytest runs"
        elif folder_of(module) not in {own} | FOLDERS[own]:
            yield f"{where}, which {own} may not"


@pytest.mark.parametrize("top", ["tests", "benchmarks"])
def test_tests_import_only_what_they_may(top: str) -> None:
    found = [
        offence
        for path in sorted((ROOT / top).rglob("*.py"))
        for offence in offences(path.relative_to(ROOT), path.read_text())
    ]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "from tests.kernel.conftest import low_mem",
        "from tests.unit import test_walls",
        "import tests.unit.test_walls as walls",
        "def f():\n    from tests.unit.test_walls import imports",
        "from tests.vm.qemu import Qemu",
        "from tests import vm",
    ],
)
def test_forbidden_import_is_found(source: str) -> None:
    assert list(offences(Path("tests/kernel/test_any.py"), source)) != []


@pytest.mark.parametrize(
    "source",
    ["from tests.harness.daemon import Daemon", "from tests.harness import daemon", "import os"],
)
def test_other_imports_are_left_alone(source: str) -> None:
    assert list(offences(Path("tests/kernel/test_any.py"), source)) == []
