"""The demonstration's two processes: a real balloond and a fake guest.

They are started as a person would start them, and have nothing but the socket in common. Every
wait here has a limit, and ``close`` ends both processes.
"""

import contextlib
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from balloon_daemon.ctl.demo.story import Story
from balloon_daemon.errors import BalloondError
from balloon_daemon.fake_guest.client import FakeGuestEndedError, FakeGuestPipes
from balloon_daemon.linux.own_module import own_module
from balloon_daemon.sizing.balloon_policy import Reason

START_S = 15.0
END_S = 5.0

TAIL_LINES = 15
"""Lines of the daemon's log that are shown when a demonstration fails."""


class DemoError(BalloondError):
    """Why the demonstration did not succeed, in one line."""


def _end_with_parent() -> list[str]:
    """The command by which the kernel ends a child when this process is killed: util-linux's
    setpriv.

    Empty where setpriv is missing; then a child outlives a demonstration that is killed by
    SIGKILL.
    """
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "TERM"] if setpriv else []


class DemoDaemon:
    """A running balloond.

    Args:
        directory: where its socket and its log are made, and where ``low-mem`` is.
        story: the VM's size, and how many times faster than ChromeOS's the balloon policy runs.
    """

    def __init__(self, directory: Path, story: Story) -> None:
        self.socket = directory / "balloond.sock"
        self.log_path = directory / "balloond.log"
        self.low_memory_events = 0
        """How many steps up its balloon policy has taken because the host was low."""
        self._half_line = ""
        command = [
            *_end_with_parent(), *own_module("balloon_daemon"),
            "--socket", str(self.socket),
            "--vm-mem", str(story.vm_bytes),
            "--low-mem-dir", str(directory / "low-mem"),
            "--speed", f"{story.speed:g}",
            "--log", "json",
        ]  # fmt: skip
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                # balloond prints on standard output how to attach a VMM, which nobody needs here.
                # Its log goes to standard error.
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )
        self._log = self.log_path.open(encoding="utf-8", errors="replace")

    def look(self) -> None:
        """Reads the new lines of its log.

        Raises:
            DemoError: balloond has ended.
        """
        *lines, self._half_line = (self._half_line + self._log.read()).split("\n")
        for line in lines:
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                self.low_memory_events += entry.get("reason") == Reason.LOW_MEMORY.value
        self.must_live()

    def must_live(self, wait_s: float = 0.0) -> None:
        """Raises DemoError if balloond has ended, or ends within so many seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = self._process.wait(wait_s)
            raise DemoError(f"balloond ended with status {status}")

    def tail(self) -> str:
        """The last lines of its log."""
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-TAIL_LINES:])

    def close(self) -> None:
        """Ends balloond by SIGTERM, and by SIGKILL where that takes too long."""
        self._log.close()
        _end(self._process)


class DemoGuest:
    """A running fake guest, which is asked for its figures without waiting for the answer.

    Args:
        socket: the path where balloond listens, or soon will.
        directory: gets the guest's standard error.
        story: the guest's memory.
    """

    def __init__(self, socket: Path, directory: Path, story: Story) -> None:
        self.status: dict[str, Any] = {}
        """The guest's latest figures."""
        self.checks: list[tuple[int, int]] = []
        """For each check: how many pages were compared, and how many differ."""
        self._ready: dict[str, Any] | None = None
        self._check_asked: set[int] = set()
        self._asked = False
        self._pipes = FakeGuestPipes(
            [
                "--socket", str(socket),
                "--wait", f"{START_S:g}",
                "--mem", str(story.vm_bytes),
                "--touched", str(story.cache_bytes),
                "--share", repr(story.share),
                "--pinned", str(story.pinned_bytes),
                "--refill",
                # Let the guest send 64 buffers before it waits for an answer. With one buffer at a
                # time, a guest on a busy machine would wait a thousand times for a processor in
                # one step of the balloon. The step would take so long that the balloon policy took
                # the next one meanwhile.
                "--in-flight", "64",
            ],
            errors=directory / "guest.log",
        )  # fmt: skip

    def wait_ready(self) -> None:
        """Waits until its driver is bound.

        Raises:
            DemoError: it ended, or was not ready in time.
        """
        deadline = time.monotonic() + START_S
        while self._ready is None:
            self.look(min(0.1, deadline - time.monotonic()))
            if time.monotonic() > deadline:
                raise DemoError(f"the fake guest was not ready after {START_S:g} s")
        self.status = self._ready

    @property
    def actual_bytes(self) -> int:
        """The balloon's size, as the guest's driver reports it."""
        return int(self.status["actual_bytes"])

    def held_bytes(self) -> int:
        """The memory that the host holds for the guest, according to the kernel."""
        assert self._ready is not None
        path = f"/proc/{self._ready['pid']}/fd/{self._ready['memfd']}"
        try:
            return os.stat(path).st_blocks * 512
        except OSError as err:
            raise DemoError(f"the fake guest is gone: {err.strerror}") from err

    def ask_status(self) -> None:
        """Asks for new figures, unless an earlier request is unanswered."""
        if not self._asked:
            self._asked = True
            self._send("status")

    def ask_check(self) -> None:
        """Asks the guest to compare all pages that it kept with their contents; see ``checks``."""
        self._check_asked.add(self._send("check"))

    def look(self, wait_s: float = 0.0) -> None:
        """Reads the guest's messages, waiting for one at most so long.

        Raises:
            DemoError: the guest has ended, or lost its device.
        """
        try:
            messages = self._pipes.read(wait_s)
        except FakeGuestEndedError as err:
            raise DemoError(_ended(err)) from None
        for message in messages:
            self._take(message)

    def _take(self, message: dict[str, Any]) -> None:
        match message:
            case {"event": "ready"}:
                self._ready = message
            case {"event": "disconnected", "reason": reason}:
                raise DemoError(f"the fake guest lost its balloon device: {reason}")
            case {"event": _}:
                pass
            case {"error": error}:
                raise DemoError(f"the fake guest could not: {error}")
            case {"id": number} if number in self._check_asked:
                self._check_asked.remove(number)
                self.checks.append((message["pages_checked"], message["pages_corrupt"]))
            case _:
                self.status = message
                self._asked = False

    def _send(self, command: str) -> int:
        try:
            return self._pipes.send(command)
        except FakeGuestEndedError as err:
            raise DemoError(_ended(err)) from None

    def close(self) -> None:
        """Kills the guest's process."""
        self._pipes.kill()


def _ended(error: FakeGuestEndedError) -> str:
    lines = error.said.splitlines()
    last = lines[-1].removeprefix("fake guest: ") if lines else "no last words"
    return f"the fake guest ended: {last}"


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
