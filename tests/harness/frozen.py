"""Stops a daemon for a while, so that it sees all events of that time at once."""

import os
import signal
from pathlib import Path

from tests.harness.daemon import Daemon
from tests.harness.waiting import wait_until


def state(pid: int) -> str:
    """A process's state, one letter of proc(5); Z where the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


def wait_state(pid: int, states: str) -> None:
    """Waits until a process is in one of these states."""
    wait_until(
        lambda: state(pid) in states,
        what=f"process {pid} is in one of the states {states}",
        seen=lambda: state(pid),
    )


class Frozen:
    """Stops a controller, which then handles all events of that time in one turn of its loop."""

    def __init__(self, daemon: Daemon) -> None:
        self._pid = daemon.pid

    def __enter__(self) -> None:
        os.kill(self._pid, signal.SIGSTOP)
        wait_state(self._pid, "T")

    def __exit__(self, *_: object) -> None:
        os.kill(self._pid, signal.SIGCONT)
