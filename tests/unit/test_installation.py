"""Whoever installs balloond runs nothing that is unknown, and root nothing that is another's."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.harness.faults import fault
from tests.harness.needs import needs_root

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "docs/install.md"]
PLACES = [ROOT / "Makefile", *PAGES, *(ROOT / ".ci").iterdir()]
NOBODY = 65534

_FETCHES = re.compile(r"pip\S*(?:\[@\]}\")? (?:\S+ )*?(?:install|wheel|download) .*")
# Said aloud as it is done: no version is kept for a Python that is newer than these files.
UNKNOWN = "pip[@]}\" install --use-pep517 -e '.[test]'"


def fetching_lines() -> list[str]:
    """Every command that has pip install, build or fetch something."""
    lines = [line for path in PLACES for line in path.read_text().splitlines()]
    return [match[0] for line in lines if (match := _FETCHES.search(line))]


def test_nothing_is_fetched_without_its_hash() -> None:
    lines = fetching_lines()

    assert len(lines) >= 9
    loose = [line for line in lines if "--require-hashes" not in line and "--no-index" not in line]
    assert loose == [UNKNOWN]


def test_nothing_is_built_by_what_nobody_has_named() -> None:
    builds = [line for line in fetching_lines() if "--only-binary :all:" not in line]

    loose = [line for line in builds if "--no-build-isolation" not in line]
    # docs/install.md's, whose files are wheels; and the one that is said aloud.
    assert [line for line in loose if "build/wheels/*.whl" not in line] == [UNKNOWN]


def test_nothing_that_root_installs_is_fetched_or_built() -> None:
    lines = [line.strip() for page in PAGES for line in page.read_text().splitlines()]
    by_root = [line for line in lines if line.startswith("sudo ") and "pip" in line]

    assert by_root == ["sudo /opt/balloond/bin/pip install --no-index build/wheels/*.whl"]


def make(target: str, checkout: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["make", "-C", str(checkout), "--no-print-directory", target],
        capture_output=True,
        text=True,
    )


@fault("`make setup`")
@needs_root
@pytest.mark.parametrize(
    ("target", "remedy"),
    [
        ("setup", "run make setup as that user"),
        ("wheels", "run make wheels as that user"),
        ("demo", "run make setup as that user"),
        ("install", "clone it as root, and run make there"),
        ("uninstall", "clone it as root, and run make there"),
    ],
)
def test_root_runs_nothing_of_a_checkout_that_is_anothers(
    target: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "root/usr/local/bin/balloond"
    monkeypatch.setenv("DESTDIR", str(tmp_path / "root"))
    installed.parent.mkdir(parents=True)
    installed.touch()
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    program = tmp_path / ".venv/bin/balloonctl"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\ntouch ran\n")
    program.chmod(0o755)
    os.chown(tmp_path, NOBODY, NOBODY)

    done = make(target, tmp_path)

    assert done.returncode == 2
    first, *_ = done.stderr.splitlines()
    assert f"this checkout belongs to nobody, whose files root would run; {remedy} (or" in first
    assert not (tmp_path / "ran").exists()
    assert [path for path in (tmp_path / "root").rglob("*") if path.is_file()] == [installed]
