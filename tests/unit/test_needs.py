"""A test that is skipped for a reason that is not known makes the run fail."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.needs import ALLOWED_SKIPS, needs_root

ROOT = Path(__file__).parents[2]


REASONS = ("the moon is full", *ALLOWED_SKIPS)


def run(path: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    """Runs tests that are skipped, and one that is known to fail, as these tests are run."""
    (path / "test_skipped.py").write_text(
        "import pytest\n\n"
        f"@pytest.mark.parametrize('reason', {REASONS!r})\n"
        "def test_it(reason):\n    pytest.skip(reason)\n\n"
        "@pytest.mark.xfail\ndef test_that_is_known_to_fail():\n    assert False\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider"]
    return subprocess.run(
        [*command, "-c", os.devnull, "--rootdir", str(path), "-rs", *options, str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@needs_root
def test_skip_for_an_unknown_reason_fails_and_says_where_reasons_are_named(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout
    assert "skipped: the moon is full" in done.stdout
    assert "ALLOWED_SKIPS in tests/harness/needs.py" in done.stdout
    assert f"1 failed, {len(ALLOWED_SKIPS)} skipped, 1 xfailed" in done.stdout
    assert all(f": {reason}\n" in done.stdout for reason in ALLOWED_SKIPS)


def test_every_skip_is_allowed_where_that_is_asked_for(tmp_path: Path) -> None:
    done = run(tmp_path, "--allow-skips")
    assert done.returncode == pytest.ExitCode.OK, done.stdout
    assert all(f": {reason}\n" in done.stdout for reason in REASONS)


@needs_root
def test_module_that_skips_itself_fails_too(tmp_path: Path) -> None:
    (tmp_path / "test_whole.py").write_text(
        "import pytest\n\npytest.importorskip('no_such_module')\n"
        "def test_it():\n    assert False\n"
    )
    done = run(tmp_path)
    assert done.returncode == pytest.ExitCode.INTERRUPTED, done.stdout
    assert "skipped: could not import 'no_such_module'" in done.stdout
    assert run(tmp_path, "--allow-skips").returncode == pytest.ExitCode.OK
