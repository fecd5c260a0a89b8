"""Every package of `.venv` has its version in the constraints: a first run is always the same."""

import re
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
CONSTRAINTS = ROOT / "tests" / "constraints.txt"
PYTHONS = ["3.11", "3.12", "3.13", "3.14", "3.15"]

# Python's own venv brings the first two, in some versions; the third is this project.
NOT_OURS = {"pip", "setuptools", "balloond"}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def constraints() -> list[Requirement]:
    lines = [line.partition("#")[0].strip() for line in CONSTRAINTS.read_text().splitlines()]
    return [Requirement(line) for line in lines if line]


def pinned(python: str) -> dict[str, str]:
    """Each package's version for a Python, as in "3.11"."""
    versions: dict[str, str] = {}
    for one in constraints():
        if one.marker is None or one.marker.evaluate({"python_version": python}):
            assert normalised(one.name) not in versions, f"{one.name} twice for {python}"
            versions[normalised(one.name)] = str(one.specifier).removeprefix("==")
    return versions


def test_constraint_is_one_exact_version() -> None:
    for one in constraints():
        (specifier,) = one.specifier
        assert specifier.operator == "==", str(one)
        assert "*" not in specifier.version, str(one)


@pytest.mark.parametrize("python", PYTHONS)
def test_every_package_has_one_version_for_each_python(python: str) -> None:
    assert pinned(python).keys() == {normalised(one.name) for one in constraints()}


@pytest.mark.skipif(
    Path(sys.prefix) != ROOT / ".venv", reason="these packages are not the ones of make setup"
)
@pytest.mark.skipif(sys.version_info >= (3, 16), reason="no version is kept for this Python")
def test_every_installed_package_has_the_version_of_the_constraints() -> None:
    installed = {normalised(one.metadata["Name"]): one.version for one in distributions()}
    for name in NOT_OURS:
        installed.pop(name, None)

    of_constraints = pinned(f"{sys.version_info.major}.{sys.version_info.minor}")
    assert installed == {name: of_constraints.get(name) for name in installed}
