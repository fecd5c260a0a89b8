"""A handle on the honest guest beside an attack, and the delays that it has measured."""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.soak.other_user import environment

Json = dict[str, Any]
PATIENCE_S = 60.0


class LostNeighbourError(AssertionError):
    """The honest guest has lost its connection, its balloon or a page."""


@dataclass(frozen=True, slots=True)
class Delays:
    """How long accesses to the config space took, in milliseconds."""

    p50_ms: float
    p99_ms: float
    max_ms: float
    count: int

    @classmethod
    def of(cls, samples_ms: Sequence[float]) -> "Delays":
        """Of samples: a percentile is the least that so many are not above."""
        every = sorted(samples_ms)
        if not every:
            raise LostNeighbourError("the neighbour could not access its config space once")
        p50, p99 = (every[max(0, -(-len(every) * percent // 100) - 1)] for percent in (50, 99))
        return cls(p50, p99, every[-1], len(every))


class NeighbourHandle:
    """The honest guest's process.

    Args:
        path: balloond's socket.
        uid: who its VMM is; None: who we are.
        folder: gets its last words.

    Raises:
        LostNeighbourError: it could not attach.
    """

    def __init__(self, path: Path, *, uid: int | None, folder: Path) -> None:
        command = [sys.executable, "-P", "-m", "tests.soak.neighbour_process", str(path)]
        if uid is not None:
            command.append(f"--uid={uid}")
        self._words = folder / "neighbour.err"
        with self._words.open("ab") as words:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=words,
                env=environment(),
            )
        self._heard = b""
        try:
            self._answer()
        except BaseException:
            self.kill()
            raise

    def __enter__(self) -> "NeighbourHandle":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """Kills and reaps it."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def begin(self) -> None:
        """Begins a measurement."""
        self._command("measure")

    def end(self) -> Delays:
        """Ends it.

        Raises:
            LostNeighbourError: it has lost its connection.
        """
        samples = self._command("delays")["ms"]
        self.status()
        return Delays.of(samples)

    def status(self) -> Json:
        """Its figures.

        Raises:
            LostNeighbourError: it has lost its connection.
        """
        status = self._command("status")
        if not status["connected"]:
            raise LostNeighbourError(f"the neighbour was cut off: {status['disconnected']}")
        return status

    def last_status(self) -> Json:
        """Its figures, its connection there or not."""
        return self._command("status")

    def reboot(self) -> None:
        """Its guest begins anew: the VMM shares memory, kicks and calls once more.

        Raises:
            LostNeighbourError: balloond refuses that, or has no room for it.
        """
        status = self._command("reboot")
        if not status["connected"]:
            raise LostNeighbourError(f"the neighbour cannot reboot: {status['disconnected']}")

    def check(self) -> None:
        """Holds every page to its pattern."""
        found = self._command("check")
        if found["pages_corrupt"]:
            raise LostNeighbourError(f"the neighbour has lost pages: {found}")

    def wait_balloon(self, size_bytes: int) -> None:
        """Waits until its balloon has a size and nothing is under way."""

        def there() -> bool:
            status = self.status()
            return bool(status["actual_bytes"] == size_bytes and status["idle"])

        self._wait(there, f"a balloon of {size_bytes} bytes")

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            if time.monotonic() > deadline:
                raise LostNeighbourError(f"not in {PATIENCE_S:g} s: {what}; {self.last_status()}")
            time.sleep(0.02)

    def _command(self, word: str) -> Json:
        assert self._process.stdin is not None
        self._process.stdin.write(word.encode() + b"\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Json:
        assert self._process.stdout is not None
        deadline = time.monotonic() + 2 * PATIENCE_S
        poller = select.poll()
        poller.register(self._process.stdout, select.POLLIN)
        while b"\n" not in self._heard:
            left_s = deadline - time.monotonic()
            heard = b""
            if left_s > 0 and poller.poll(left_s * 1000):
                heard = os.read(self._process.stdout.fileno(), 1 << 20)
            if not heard:
                raise LostNeighbourError(f"no word of the neighbour: {self._words.read_text()}")
            self._heard += heard
        line, self._heard = self._heard.split(b"\n", 1)
        answer: Json = json.loads(line)
        return answer
