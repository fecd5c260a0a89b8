"""The log's last step: lines that go out whole, or are counted."""

import fcntl
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from balloon_daemon.records.log import LOGGER, EventLog, configure

PIPE_BYTES = 4096
"""One page: the least that a pipe can be, and what a writable one has room for."""


@dataclass(frozen=True)
class SmallPipe:
    """Where the log goes: a pipe of one page that is emptied only when a test reads it."""

    reader: int

    def read(self) -> list[str]:
        return os.read(self.reader, 1 << 20).decode().splitlines()


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallPipe]:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    before = LOGGER.handlers, LOGGER.propagate, LOGGER.level
    with open(writer, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        configure("text", verbose=False)
        yield SmallPipe(reader)
    LOGGER.handlers, LOGGER.propagate = before[:2]
    LOGGER.setLevel(before[2])
    os.close(reader)


def say(message: str) -> None:
    EventLog().info("test", message)


def test_line_goes_out_whole(pipe: SmallPipe) -> None:
    say("first")
    assert [line.rpartition(": ")[2] for line in pipe.read()] == ["first"]


def test_full_pipe_loses_lines_at_once_and_the_next_says_how_many(pipe: SmallPipe) -> None:
    say("a" * 3000)
    say("lost")
    say("lost too")
    assert len(pipe.read()) == 1

    say("next")
    say("and on")

    loss, following = pipe.read()[:2]
    assert loss.endswith("warning: 2 lines could not be written here: lost")
    assert following.endswith("next")


def test_line_cut_off_by_a_full_pipe_does_not_run_into_the_next(pipe: SmallPipe) -> None:
    say("a" * 2 * PIPE_BYTES)
    assert len(pipe.read()[0]) == PIPE_BYTES

    say("next")

    rest, loss, following = pipe.read()
    assert rest == ""
    assert "1 line could not be written" in loss
    assert following.endswith("next")


def test_closed_pipe_is_no_reason_to_fail(pipe: SmallPipe) -> None:
    with open(os.devnull) as nowhere:
        os.dup2(nowhere.fileno(), pipe.reader)
    say("nobody hears this")


def test_lone_surrogate_in_a_message_is_written_as_an_escape(pipe: SmallPipe) -> None:
    # pytest's own handler would put it into its report, which then no other process can be sent.
    LOGGER.handlers = LOGGER.handlers[:1]
    say("file \udcff")
    assert pipe.read()[0].endswith("file \\udcff")
