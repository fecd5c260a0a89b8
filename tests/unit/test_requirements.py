"""What is installed has a version and a hash in requirements/: what was tested, or nothing."""

import importlib.util
import re
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "requirements"
FILES = sorted(REQUIREMENTS.glob("*.txt"))
PYTHONS = ["3.11", "3.12", "3.13", "3.14", "3.15"]

# Python's own venv brings it; the second is this project.
NOT_OURS = {"pip", "balloond"}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def entries(path: Path) -> list[tuple[Requirement, list[str]]]:
    """Each requirement of a file, with its hashes."""
    text = path.read_text().replace("\\\n", " ")
    found = []
    for line in text.splitlines():
        if line and not line.startswith("#"):
            words = line.split("--hash=")
            found.append((Requirement(words[0].strip()), [word.strip() for word in words[1:]]))
    return found


def requirements() -> list[Requirement]:
    return [one for path in FILES for one, _ in entries(path)]


def pinned(python: str, files: list[Path] = FILES) -> dict[str, str]:
    """Each package's version for a Python, as in "3.11"."""
    versions: dict[str, str] = {}
    for path in files:
        for one, _ in entries(path):
            if one.marker is None or one.marker.evaluate({"python_version": python}):
                version = str(one.specifier).removeprefix("==")
                # Several files may name one package, for those who take one of them alone.
                assert versions.setdefault(normalised(one.name), version) == version, one.name
    return versions


def test_requirement_is_one_exact_version() -> None:
    assert len(FILES) == 5
    for one in requirements():
        (specifier,) = one.specifier
        assert specifier.operator == "==", str(one)
        assert "*" not in specifier.version, str(one)


def test_requirement_has_the_hash_of_each_file_that_may_come() -> None:
    for path in FILES:
        for one, hashes in entries(path):
            assert hashes == sorted(set(hashes)), str(one)
            assert hashes != [], str(one)
            for digest in hashes:
                assert re.fullmatch(r"sha256:[0-9a-f]{64}", digest), str(one)


@pytest.mark.parametrize("python", PYTHONS)
def test_every_package_has_one_version_for_each_python(python: str) -> None:
    assert pinned(python).keys() == {normalised(one.name) for one in requirements()}


@pytest.mark.parametrize(
    ("extra", "files"),
    [
        (None, ["balloond"]),
        ("ctl", ["balloond", "ctl"]),
        ("test", ["balloond", "ctl", "test", "build"]),
        ("fuzz", ["fuzz"]),
    ],
)
def test_what_the_project_asks_for_is_in_the_files(extra: str | None, files: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = project["optional-dependencies"][extra] if extra else project["dependencies"]

    versions = pinned("3.11", [REQUIREMENTS / f"{name}.txt" for name in files])
    for one in map(Requirement, asked):
        if one.name != "balloond":
            assert one.specifier.contains(versions[normalised(one.name)]), str(one)


def test_daemon_needs_nothing_but_what_it_and_its_check_import() -> None:
    needed = [one.name for one, _ in entries(REQUIREMENTS / "balloond.txt")]
    assert needed == ["h11", "python-prctl", "pyseccomp"]


def test_file_that_is_written_anew_says_the_same_but_for_its_hashes() -> None:
    spec = importlib.util.spec_from_file_location("update", REQUIREMENTS / "update.py")
    assert spec is not None
    assert spec.loader is not None
    update = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(update)
    for path in FILES:
        known = {str(one): hashes for one, hashes in entries(path)}
        text = path.read_text()
        assert update.rewritten(text, lambda one, known=known: known[str(one)]) == text


@pytest.mark.skipif(
    Path(sys.prefix) != ROOT / ".venv", reason="these packages are not the ones of make setup"
)
@pytest.mark.skipif(sys.version_info >= (3, 16), reason="no version is kept for this Python")
def test_every_installed_package_has_the_version_of_the_requirements() -> None:
    installed = {normalised(one.metadata["Name"]): one.version for one in distributions()}
    for name in NOT_OURS:
        installed.pop(name, None)

    of_files = pinned(f"{sys.version_info.major}.{sys.version_info.minor}")
    assert installed == {name: of_files.get(name) for name in installed}
