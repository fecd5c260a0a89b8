"""What becomes of a record whose writer, a real process, does not keep up, or ends."""

import contextlib
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from balloon_daemon.ctl.simulate.replay import replay
from balloon_daemon.ctl.simulate.trace_file import read_trace
from balloon_daemon.events import Event, EventsLost, RecordingEnded, Surveyed
from balloon_daemon.linux.apart import LowNumbers
from balloon_daemon.records.recorder import Recorder, open_trace
from balloon_daemon.records.scribe import MOST_BYTES, Scribe
from balloon_daemon.records.trace import Header
from balloon_daemon.sizing.balloon_policy import PolicySettings
from balloon_daemon.sizing.decision import Reading
from tests.harness.faults import fault
from tests.harness.waiting import wait_until

SURVEYS = MOST_BYTES // 50
"""More than what is kept for a writer and what its socket takes, some 200 KiB: a line has more
than 55 bytes."""


class Recorded:
    """A recorder with a writer of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.published: list[Event] = []
        before = children()
        low, file = LowNumbers(), open_trace(path)
        self.scribe = Scribe("file_writer.py", [str(64 << 20)], low, file)
        os.close(file)
        low.close()
        (self.writer,) = children() - before
        header = Header(0.0, PolicySettings())
        self.recorder = Recorder(self.scribe, header, self.published.append)
        self._now_s = 100000.0

    def survey(self, times: int) -> None:
        for _ in range(times):
            self._now_s += 1.0
            self.recorder(Surveyed(self._now_s, Reading(1000, 400)), 0.0)


def children() -> set[int]:
    pid = os.getpid()
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


@pytest.fixture
def recorded(tmp_path: Path) -> Iterator[Recorded]:
    made = Recorded(tmp_path / "a.trace")
    yield made
    made.recorder.close()
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(made.writer, signal.SIGKILL)
        os.waitpid(made.writer, 0)


@fault("the trace of --record cannot be written")
def test_writer_that_hangs_loses_lines_and_the_trace_says_how_many(recorded: Recorded) -> None:
    os.kill(recorded.writer, signal.SIGSTOP)
    recorded.survey(SURVEYS)
    os.kill(recorded.writer, signal.SIGCONT)

    def surveyed() -> bool:
        recorded.survey(1)
        return b'"lost"' in recorded.path.read_bytes()

    wait_until(surveyed, what="the loss is written")
    trace = read_trace(str(recorded.path))
    assert 0 < replay(trace).lost < SURVEYS
    assert recorded.published == []


@fault("the trace of --record cannot be written")
def test_writer_that_dies_is_said_once(recorded: Recorded) -> None:
    recorded.survey(1)
    wait_until(lambda: b'"read"' in recorded.path.read_bytes(), what="it is written")
    os.kill(recorded.writer, signal.SIGKILL)

    def surveyed() -> bool:
        recorded.survey(1)
        return bool(recorded.published)

    wait_until(surveyed, what="it is missed")
    recorded.survey(10)
    assert recorded.published == [RecordingEnded("")]


def test_events_that_no_reader_saw_are_lost_lines(recorded: Recorded) -> None:
    recorded.recorder(EventsLost(7), 0.0)
    recorded.survey(1)
    wait_until(lambda: b'"read"' in recorded.path.read_bytes(), what="it is written")
    assert replay(read_trace(str(recorded.path))).lost == 7


class LateNumbers(LowNumbers):
    """Starts a program, and comes back once it has ended."""

    def exec(self, command: list[str], environment: Mapping[str, str], keep: int) -> int:
        pid = super().exec(command, environment, keep)
        state = Path(f"/proc/{pid}/stat")
        wait_until(lambda: state.read_text().rsplit(")", 1)[1].split()[0] == "Z", what="its end")
        return pid


@fault("the file of --history cannot be written")
def test_writer_that_gives_up_before_its_first_line_is_read_has_begun_and_says_why(
    tmp_path: Path,
) -> None:
    low = LateNumbers()
    scribe = Scribe("history_writer.py", [str(tmp_path / "none" / "h.db")], low)
    low.close()
    wait_until(lambda: scribe.why_ended() is not None, what="its end is seen")
    assert scribe.why_ended() == "unable to open database file"


def test_trace_ends_at_its_largest_size_with_a_whole_line(tmp_path: Path) -> None:
    low, file = LowNumbers(), open_trace(tmp_path / "a")
    scribe = Scribe("file_writer.py", ["1000"], low, file)
    low.close()
    while scribe.why_ended() is None:
        scribe.send(b"x" * 98 + b"\n")
    assert scribe.why_ended() == "it has reached its largest size, 0 MiB"
    assert os.fstat(file).st_size == 990
    os.close(file)
