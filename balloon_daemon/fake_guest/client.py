"""A handle on a fake guest's process, for tests, benchmarks, soak and the demo.

``FakeGuestProcess`` waits for each answer; ``FakeGuestPipes`` sends and reads without waiting.
Neither touches guest memory or imports numpy: they know the guest by its messages, and by
``/proc``.
"""

import contextlib
import json
import os
import select
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from balloon_daemon.fake_guest.wire import DEFAULT_TIMEOUT_S
from balloon_daemon.linux.own_module import own_module

Json = dict[str, Any]


class FakeGuestEndedError(RuntimeError):
    """The process is gone. ``said``: its standard error, without white space at the ends."""

    def __init__(self, said: str) -> None:
        super().__init__(f"the fake guest ended: {said}")
        self.said = said


class FakeGuestPipes:
    """A fake guest's process: takes commands, and is read without waiting for answers.

    Args:
        arguments: its command line, ``--socket`` included.
        errors: the file that gets its standard error; None: a pipe, read when it has ended.
    """

    def __init__(self, arguments: Sequence[str], *, errors: Path | None = None) -> None:
        self._errors = errors
        self._pending = b""
        self._next_id = 0
        command = [*own_module("balloon_daemon.fake_guest"), *arguments]
        with open(os.devnull if errors is None else errors, "wb") as file:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE if errors is None else file,
                start_new_session=True,
            )

    def send(self, name: str, **arguments: object) -> int:
        """Sends a command. Returns its number, the ``id`` of its answer.

        Raises:
            FakeGuestEndedError: it accepts no more commands.
        """
        assert self._process.stdin is not None
        self._next_id += 1
        line = json.dumps({"id": self._next_id, "command": name, **arguments})
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise FakeGuestEndedError(self._said()) from None
        return self._next_id

    def read(self, timeout_s: float) -> list[Json]:
        """The events and answers that have arrived; waits for the first one at most ``timeout_s``.

        Raises:
            FakeGuestEndedError: it has ended.
        """
        stdout = self._process.stdout
        assert stdout is not None
        poller = select.poll()
        poller.register(stdout, select.POLLIN)
        if not poller.poll(max(0.0, timeout_s) * 1000):
            return []
        data = os.read(stdout.fileno(), 1 << 16)
        if not data:
            raise FakeGuestEndedError(self._said())
        *lines, self._pending = (self._pending + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def _said(self) -> str:
        if self._errors is not None:
            return self._errors.read_text(errors="replace").strip()
        assert self._process.stderr is not None
        return self._process.stderr.read().decode(errors="replace").strip()

    def kill(self) -> None:
        """Kills the process, as a VMM may die, and reaps it."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                # close() may flush a command that the process has not read. The process is gone,
                # so the flush fails, and its error is ignored.
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def quit(self, timeout_s: float) -> int:
        """Ends the process by closing its standard input; returns its exit status."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        status = self._process.wait(timeout_s)
        self.kill()
        return status


class FakeGuestProcess:
    """A running fake guest.

    Args:
        arguments: its command line, ``--socket`` included.
        timeout_s: longest wait for an answer or an event.

    Raises:
        RuntimeError: it ended before it was ready; the message has the end of its standard error.
        TimeoutError: it was not ready in time.
    """

    def __init__(self, arguments: Sequence[str], *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self.timeout_s = timeout_s
        self.events: list[Json] = []
        """Every event so far, in order."""
        self._answers: dict[int, Json] = {}
        self._pipes = FakeGuestPipes(arguments)
        try:
            self.ready = self.wait_event("ready")
        except BaseException:
            self.kill()
            raise
        self.pid = int(self.ready["pid"])

    def __enter__(self) -> "FakeGuestProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """Kills the process, as a VMM may die, and reaps it."""
        self._pipes.kill()

    def quit(self) -> int:
        """Ends the process by closing its standard input; returns its exit status."""
        return self._pipes.quit(self.timeout_s)

    def blocks_bytes(self) -> int:
        """The memory that the host holds for the guest, according to the kernel, in bytes."""
        path = f"/proc/{self.pid}/fd/{self.ready['memfd']}"
        return os.stat(path).st_blocks * 512

    def command(self, name: str, **arguments: object) -> Json:
        """Sends a command and waits for its answer.

        Raises:
            RuntimeError: the guest answered with an error, or ended.
            TimeoutError: no answer in time.
        """
        number = self._pipes.send(name, **arguments)
        self._wait(lambda: number in self._answers, f"an answer to {name}")
        answer = self._answers.pop(number)
        if "error" in answer:
            raise RuntimeError(f"{name}: {answer['error']}")
        return answer

    def status(self) -> Json:
        """The guest's figures."""
        return self.command("status")

    def wait_event(self, name: str) -> Json:
        """Waits for an event, and returns the first of its name."""

        def found() -> Json | None:
            named = (event for event in self.events if event["event"] == name)
            return next(named, None)

        self._wait(lambda: found() is not None, f"event {name}")
        event = found()
        assert event is not None
        return event

    def wait_status(self, condition: Callable[[Json], bool], what: str) -> Json:
        """Waits until the guest's figures meet a condition, and returns them."""
        deadline = time.monotonic() + self.timeout_s
        while True:
            status = self.status()
            if condition(status):
                return status
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {self.timeout_s:g} s for {what}; it is {status}")
            self._read(0.02)

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + self.timeout_s
        while not condition():
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError(f"waited {self.timeout_s:g} s for {what}")
            self._read(left_s)

    def _read(self, timeout_s: float) -> None:
        for message in self._pipes.read(timeout_s):
            if "event" in message:
                self.events.append(message)
            else:
                self._answers[message["id"]] = message
