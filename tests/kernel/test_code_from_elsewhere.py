"""What balloond and balloonctl start runs nothing out of the directory that somebody stands in.

``python -m`` puts the current directory first on ``sys.path``: whoever may write there would have
his code run by whoever calls us there, root included.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import balloon_daemon
from balloon_daemon.ctl.demo.processes import DemoDaemon
from balloon_daemon.ctl.demo.story import plan
from balloon_daemon.fake_guest.client import FakeGuestProcess
from balloon_daemon.guests.libvirt import interpreter
from balloon_daemon.guests.libvirt.connection import client_command
from balloon_daemon.handover import keeper_start
from balloon_daemon.units import GIB
from tests.harness.faults import fault
from tests.harness.waiting import HANG_S, wait_until

PACKAGE = Path(balloon_daemon.__file__).parent
ISOLATED = {"-P", "-I"}
"""Either keeps the current directory out."""


def interpreters_started() -> Iterator[tuple[str, list[str]]]:
    """Each list in the sources that begins an interpreter's command: where, and its words."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.List):
                words = [ast.unparse(word).strip("'") for word in node.elts]
                if "sys.executable" in words:
                    after = words[words.index("sys.executable") + 1 :]
                    yield f"{path.relative_to(PACKAGE)}:{node.lineno}", after


@fault("modules of balloond's")
def test_libvirts_client_is_started_isolated() -> None:
    # Its interpreter may be another than ours, so the test below does not see it.
    assert client_command() == [sys.executable, "-I", interpreter.__file__]


@fault("modules of balloond's")
def test_every_interpreter_that_is_started_leaves_the_current_directory_out() -> None:
    found = dict(interpreters_started())
    assert len(found) >= 4
    assert {where: words for where, words in found.items() if words[0] not in ISOLATED} == {}


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory to stand in, whose modules leave a mark when they are run."""
    here, mark = tmp_path / "here", tmp_path / "mark"
    code = f"open({str(mark)!r}, 'w').close()\n"
    for module in ("balloon_daemon/__init__.py", "balloon_daemon/__main__.py", "socket.py"):
        file = here / module
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(code)
    monkeypatch.chdir(here)
    return mark


def test_fake_guest_runs_nothing_of_the_current_directory(trap: Path) -> None:
    with pytest.raises(RuntimeError):
        FakeGuestProcess(["--socket", "/nowhere/at/all"], timeout_s=HANG_S)
    assert not trap.exists()


@fault("modules of balloond's")
def test_demos_daemon_runs_nothing_of_the_current_directory(trap: Path, tmp_path: Path) -> None:
    (tmp_path / "low-mem").mkdir()
    (tmp_path / "low-mem/margin").write_text("400")
    (tmp_path / "low-mem/available").write_text("4000")
    daemon = DemoDaemon(tmp_path, plan(4 * GIB, 10))
    try:
        wait_until(daemon.socket.is_socket, what="it listens")
    finally:
        daemon.close()
    assert not trap.exists()


@fault("modules of balloond's")
def test_keeper_runs_nothing_of_the_current_directory(trap: Path, tmp_path: Path) -> None:
    kept = keeper_start.start_keeper(tmp_path / "s")
    kept.abandon()
    assert not trap.exists()


def test_keeper_runs_nothing_of_site_packages(tmp_path: Path) -> None:
    """A line in a .pth file there may begin with import, and is run at an interpreter's start."""
    kept = keeper_start.start_keeper(tmp_path / "s")
    keeper = keeper_start.keeper_at(tmp_path / "s")
    assert keeper is not None
    maps = Path(f"/proc/{keeper.pid}/maps").read_text()
    command = Path(f"/proc/{keeper.pid}/cmdline").read_bytes().split(b"\0")
    kept.abandon()
    assert b"-S" in command
    assert "site-packages" not in maps
