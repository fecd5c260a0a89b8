"""Starts a balloond with pipes for streams, and finds all processes that it leaves behind."""

import contextlib
import os
import subprocess
import uuid
from pathlib import Path

from tests.harness.daemon import BALLOOND

DEADLINE_S = 60.0
"""Only a process that hangs takes so long."""

_MARK = "BALLOOND_TEST_MARK"


class MarkedStart:
    """A started balloond; ``end`` waits for its end, ``kill`` cleans up after a test that failed.

    Args:
        options: as they are typed.
        cwd: its working directory.
        environment: further variables.
    """

    def __init__(
        self,
        *options: str,
        cwd: Path | None = None,
        environment: dict[str, str] | None = None,
        program: tuple[str, ...] = (str(BALLOOND),),
    ) -> None:
        self._mark = f"{_MARK}={uuid.uuid4().hex}".encode()
        name, _, value = self._mark.decode().partition("=")
        self._process = subprocess.Popen(
            [*program, *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
            env=os.environ | (environment or {}) | {name: value},
        )
        self.pid = self._process.pid
        assert self._process.stderr is not None
        self._errors = os.readlink(f"/proc/self/fd/{self._process.stderr.fileno()}")
        self.printed = self.said = ""

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def next_lines(self, count: int) -> list[str]:
        """Waits for as many lines on standard error."""
        assert self._process.stderr is not None
        return [self._process.stderr.readline().removesuffix("\n") for _ in range(count)]

    def end(self) -> int:
        """Reads both streams to their end of file, whichever process has them open. Returns the
        exit status."""
        self.printed, self.said = self._process.communicate(timeout=DEADLINE_S)
        return self._process.returncode

    def processes(self) -> list[int]:
        """All running processes that come from this start.

        They are found by the mark in their environment or, as a template has none, by the pipe for
        errors.
        """
        found = []
        for path in Path("/proc").iterdir():
            if path.name.isdecimal():
                with contextlib.suppress(OSError):
                    marked = self._mark in (path / "environ").read_bytes().split(b"\0")
                    if marked or self._errors == os.readlink(path / "fd/2"):
                        found.append(int(path.name))
        return sorted(found)

    def kill(self) -> None:
        """Kills all of them."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        self._process.kill()
        with contextlib.suppress(ValueError):  # its streams are closed, as it was waited for
            self._process.communicate()
