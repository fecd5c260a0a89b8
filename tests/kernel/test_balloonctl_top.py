"""``balloonctl top`` on a terminal, and what it makes of the lack of one."""

import os
import pty
import re
import select
import signal
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from balloon_daemon.fake_guest.machine import FakeGuest, run
from tests.harness.daemon import ROOT, Daemon
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.makers import SETTINGS, MakeGuest, StartDaemon
from tests.harness.waiting import HANG_S, wait_until
from tests.harness.whole_vm import attach

BALLOONCTL = ROOT / ".venv/bin/balloonctl"


class Terminal:
    """``balloonctl top`` on a terminal, and the frame that it has drawn last."""

    def __init__(self, api: Path, columns: int, rows: int, **environment: str) -> None:
        self._ours, self._theirs = pty.openpty()
        termios.tcsetwinsize(self._theirs, (rows, columns))
        self.modes = termios.tcgetattr(self._theirs)
        self.process = subprocess.Popen(
            [BALLOONCTL, "top", "--every", "0.05s", "--api", api],
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=subprocess.PIPE,
            env={**os.environ, "TERM": "xterm", "LC_ALL": "C.UTF-8", **environment},
        )
        self.text = ""

    def frame(self) -> list[str]:
        """The lines of the last whole frame, without styles; none before the first."""
        while select.select([self._ours], [], [], 0)[0]:
            self.text += os.read(self._ours, 1 << 16).decode(errors="replace")
        whole = [part for part in self.text.split("\x1b[H")[1:] if "\x1b[J" in part]
        plain = (
            re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", whole[-1].split("\x1b[J")[0]) if whole else ""
        )
        # The terminal's driver writes another CR for each line's end.
        return re.split(r"\r+\n", plain) if plain else []

    def shows(self, text: str) -> bool:
        """Whether the last frame has this text, wherever its lines end."""
        return text in " ".join(" ".join(self.frame()).split())

    def resize(self, columns: int, rows: int) -> None:
        termios.tcsetwinsize(self._theirs, (rows, columns))
        # It is not the controlling terminal of the process, to which the kernel would send it.
        self.process.send_signal(signal.SIGWINCH)

    def press(self, key: bytes) -> None:
        os.write(self._ours, key)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        os.close(self._ours)
        os.close(self._theirs)

    def modes_now(self) -> list[Any]:
        return list(termios.tcgetattr(self._theirs))


@pytest.fixture
def api(tmp_path: Path) -> Path:
    return tmp_path / "api.sock"


@pytest.fixture
def daemon(start_daemon: StartDaemon, api: Path) -> Daemon:
    return start_daemon("--api", str(api))


@pytest.fixture
def guest(daemon: Daemon, make_guest: MakeGuest) -> FakeGuest:
    return attach(make_guest(SETTINGS), daemon)


@pytest.fixture
def terminal(guest: FakeGuest, api: Path) -> Iterator[Terminal]:
    shown = Terminal(api, 80, 24)
    run([guest], lambda: shown.shows("vm1 512M"))
    yield shown
    shown.close()


def test_top_shows_a_balloon_grow_and_leaves_the_terminal_as_it_was(
    terminal: Terminal, guest: FakeGuest, low_mem: LowMemDir
) -> None:
    low_mem.set_low()
    run([guest], lambda: terminal.shows(" 256M 256M 256M "))
    run([guest], lambda: terminal.shows("memory is LOW"))
    lines = terminal.frame()
    (vm,) = [line for line in lines if line.startswith("vm1 ")]
    assert vm.endswith("█")
    assert lines[lines.index("Decisions") + 1].split()[1:3] == ["vm1:", "low"]
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 24
    assert terminal.modes_now() != terminal.modes

    terminal.press(b"q")
    assert terminal.process.wait(HANG_S) == 0
    terminal.frame()
    assert terminal.text.startswith("\x1b[?1049h")
    assert terminal.text.endswith("\x1b[?1049l")
    assert terminal.modes_now() == terminal.modes


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_ends_top_as_q_does(terminal: Terminal, number: signal.Signals) -> None:
    terminal.process.send_signal(number)
    assert terminal.process.wait(HANG_S) == 0
    terminal.frame()
    assert terminal.text.endswith("\x1b[?1049l")
    assert terminal.modes_now() == terminal.modes


def test_top_that_was_stopped_goes_on_with_its_screen(
    terminal: Terminal, guest: FakeGuest
) -> None:
    terminal.process.send_signal(signal.SIGTSTP)
    _, status = os.waitpid(terminal.process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    terminal.frame()
    assert terminal.text.endswith("\x1b[?1049l")
    assert terminal.modes_now() == terminal.modes
    before = len(terminal.text)
    terminal.process.send_signal(signal.SIGCONT)
    wait_until(lambda: len(terminal.frame()) and "\x1b[J" in terminal.text[before:], what="drawn")
    assert terminal.text[before:].startswith("\x1b[?1049h")
    assert terminal.modes_now() != terminal.modes


def test_top_adapts_when_the_terminal_becomes_another(
    terminal: Terminal, guest: FakeGuest
) -> None:
    terminal.resize(60, 6)
    wait_until(lambda: 0 < len(terminal.frame()) <= 6, what="it fits 6 rows")
    wait_until(lambda: max(map(len, terminal.frame())) <= 60, what="it fits 60 columns")
    terminal.resize(120, 30)
    wait_until(lambda: max(map(len, terminal.frame())) == 120, what="it takes 120 columns")


def test_top_stays_while_balloond_is_started_again(
    terminal: Terminal, daemon: Daemon, start_daemon: StartDaemon, api: Path
) -> None:
    daemon.kill()
    wait_until(lambda: terminal.shows(". Asking again"), what="that is shown")
    assert terminal.shows("vm1 512M")
    start_daemon("--api", str(api), name="second")
    wait_until(lambda: terminal.shows("no VM is driven"), what="the second one answers")
    assert not terminal.shows("Asking again")


def test_terminal_without_colours_or_utf8_gets_none(guest: FakeGuest, api: Path) -> None:
    shown = Terminal(api, 80, 24, NO_COLOR="1", PYTHONIOENCODING="ascii")
    try:
        run([guest], lambda: shown.shows("vm1 512M"))
        assert shown.text.isascii()
        assert re.findall(r"\x1b\[[^m\x1b]*3[0-9]m", shown.text) == []
    finally:
        shown.close()


@pytest.mark.parametrize("terminal_kind", ["none", "dumb"])
def test_top_without_a_terminal_is_the_table_of_status_and_ends(
    terminal_kind: str, guest: FakeGuest, daemon: Daemon, api: Path
) -> None:
    run([guest], lambda: any(r["event"] == "vm-attached" for r in daemon.records()))
    ours, theirs = pty.openpty()
    output = subprocess.PIPE if terminal_kind == "none" else theirs
    done = subprocess.run(
        [BALLOONCTL, "top", "--api", api],
        stdout=output,
        stderr=subprocess.PIPE,
        env={**os.environ, "TERM": "dumb" if terminal_kind == "dumb" else "xterm"},
        timeout=HANG_S,
    )
    out = done.stdout if terminal_kind == "none" else os.read(ours, 1 << 16)
    os.close(ours)
    os.close(theirs)
    assert (done.returncode, done.stderr) == (0, b"")
    assert out.split()[:2] == [b"VM", b"KIND"]
    assert b"\nvm1 " in out
    assert b"\x1b" not in out
