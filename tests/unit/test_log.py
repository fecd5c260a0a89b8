"""The log's last step: lines that go out whole, or are counted, and what a line looks like."""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from balloon_daemon.events import (
    Connected,
    DeviceReady,
    DeviceStarted,
    Event,
    NotAccepted,
    SourceTrouble,
    TakenOver,
    TemplateStarted,
    VmDriven,
    VmFailed,
)
from balloon_daemon.linux.journald import send_line
from balloon_daemon.records.budget import FIRST_LINES
from balloon_daemon.records.log import Log
from balloon_daemon.units import GIB, VmId

PIPE_BYTES = 4096
"""One page: the least that a pipe can be, and what a writable one has room for."""

VM = VmId(7, "vm7")
AT_S = 1764240000.25
"""2025-11-27 10:40:00.250 UTC."""


@dataclass(frozen=True)
class SmallPipe:
    """Where the log goes: a pipe of one page that is emptied only when a test reads it."""

    reader: int
    writer: int

    def read(self) -> list[str]:
        return os.read(self.reader, 1 << 20).decode().splitlines()


@pytest.fixture
def pipe() -> Iterator[SmallPipe]:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    os.set_blocking(reader, False)
    yield SmallPipe(reader, writer)
    os.close(reader)
    os.close(writer)


@pytest.fixture
def log(pipe: SmallPipe) -> Log:
    return Log(pipe.writer, "text", verbose=False)


def say(log: Log, message: str) -> None:
    log(TemplateStarted(message), AT_S)


def test_line_goes_out_whole(log: Log, pipe: SmallPipe) -> None:
    say(log, "first")
    assert [line.rpartition(": ")[2] for line in pipe.read()] == ["first"]


def test_full_pipe_loses_lines_at_once_and_the_next_says_how_many(
    log: Log, pipe: SmallPipe
) -> None:
    say(log, "a" * 3000)
    say(log, "lost")
    say(log, "lost too")
    assert len(pipe.read()) == 1

    say(log, "next")
    say(log, "and on")

    loss, following = pipe.read()[:2]
    assert loss.endswith(
        "warning: 2 lines could not be written here (a full disk, or a slow reader): lost"
    )
    assert following.endswith("next")


def test_line_cut_off_by_a_full_pipe_does_not_run_into_the_next(log: Log, pipe: SmallPipe) -> None:
    say(log, "a" * 2 * PIPE_BYTES)
    assert len(pipe.read()[0]) == PIPE_BYTES

    say(log, "next")

    rest, loss, following = pipe.read()
    assert rest == ""
    assert "1 line could not be written" in loss
    assert following.endswith("next")


def test_closed_pipe_is_no_reason_to_fail(log: Log, pipe: SmallPipe) -> None:
    with open(os.devnull) as nowhere:
        os.dup2(nowhere.fileno(), pipe.reader)
    say(log, "nobody hears this")


def test_lone_surrogate_in_a_message_is_written_as_an_escape(log: Log, pipe: SmallPipe) -> None:
    say(log, "file \udcff")
    assert pipe.read()[0].endswith("file \\udcff")


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (TakenOver(VM), "balloond: vm7: goes on where another balloond left"),
        (SourceTrouble("low"), "balloond: warning: low"),
        (NotAccepted("why"), "balloond: error: cannot take a VMM's connection: why; trying again"),
        (
            VmFailed(VM, "OSError: two\nlines"),
            "balloond: error: vm7: unexpected error in balloond: OSError: two | lines",
        ),
    ],
)
def test_text_line_says_when_how_bad_which_vm_and_what(
    log: Log, pipe: SmallPipe, event: Event, text: str
) -> None:
    log(event, AT_S)
    (line,) = pipe.read()
    when, _, rest = line.partition(" ")
    assert rest == text
    assert when.endswith(":00.250")


def test_json_line_has_the_events_own_fields_between_its_word_and_the_lines(
    pipe: SmallPipe,
) -> None:
    Log(pipe.writer, "json", verbose=False)(DeviceStarted(VM, 12, ("statsq",)), AT_S)
    assert list(json.loads(pipe.read()[0]).items()) == [
        ("event", "device-started"),
        ("vm", "vm7"),
        ("pid", 12),
        ("queues", ["statsq"]),
        ("time", "2025-11-27T10:40:00.250+00:00"),
        ("level", "info"),
        ("message", "device 12 serves statsq"),
    ]


@pytest.fixture
def journald(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The socket of a systemd-journald, for logs to the journal's stream."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.setblocking(False)
        send = partial(send_line, path=str(tmp_path / "socket"))
        monkeypatch.setattr("balloon_daemon.records.log.send_line", send)
        yield listener


def stream_log(pipe: SmallPipe, monkeypatch: pytest.MonkeyPatch, style: str = "text") -> Log:
    """A log whose standard error systemd has connected to the journal."""
    status = os.fstat(pipe.writer)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    return Log(pipe.writer, style, verbose=False)


def test_journald_gets_lines_with_their_fields(
    pipe: SmallPipe, journald: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = stream_log(pipe, monkeypatch)
    log(DeviceStarted(VM, 12, ("statsq", "reporting")), AT_S)
    log(VmFailed(VM, "one\ntwo"), AT_S)

    assert journald.recv(4096).decode().splitlines() == [
        "MESSAGE=vm7: device 12 serves statsq, reporting",
        "PRIORITY=6",
        "SYSLOG_IDENTIFIER=balloond",
        "EVENT=device-started",
        "VM=vm7",
        "PID=12",
        "QUEUES=statsq",
        "QUEUES=reporting",
    ]
    # A value of several lines comes with its length, which journald needs there.
    assert journald.recv(4096).endswith(b"\x07\0\0\0\0\0\0\0one\ntwo\n")
    assert read_one(pipe) == ""


def test_lines_that_journald_does_not_take_go_to_its_stream(
    pipe: SmallPipe, journald: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = stream_log(pipe, monkeypatch)
    journald.close()
    say(log, "first")
    assert pipe.read() == ["<6>first"]


def test_lines_of_json_go_to_the_stream_alone(
    pipe: SmallPipe, journald: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = stream_log(pipe, monkeypatch, "json")
    say(log, "first")
    assert json.loads(pipe.read()[0])["event"] == "template-started"
    with pytest.raises(BlockingIOError):
        journald.recv(4096)


@pytest.mark.parametrize(("verbose", "lines"), [(False, 1), (True, 4)])
def test_quiet_events_have_lines_only_where_all_are_wanted(
    pipe: SmallPipe, verbose: bool, lines: int
) -> None:
    log = Log(pipe.writer, "text", verbose=verbose)
    said = []
    starts = [DeviceStarted(VM, 12, ("statsq",), quiet) for quiet in (True, False, True)]
    published: list[Event] = [*starts, DeviceReady(VM)]
    for event in published:
        log(event, AT_S)
        said.append(read_one(pipe))
    assert len([line for line in said if line]) == lines


def test_lines_beyond_a_users_budget_are_left_out_and_counted_in_the_next(
    pipe: SmallPipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("balloon_daemon.records.log.monotonic", lambda: now[0])
    log = Log(pipe.writer, "text", verbose=False)
    log(Connected(VM, 1000), AT_S)
    said = []
    for _ in range(FIRST_LINES + 3):
        log(TakenOver(VM), AT_S)
        if line := read_one(pipe):
            said.append(line)
    now[0] = 1.0
    log(TakenOver(VM), AT_S)

    assert len(said) == FIRST_LINES
    assert read_one(pipe).endswith(" (3 more lines on VMs of this user were left out)")


def test_driven_vms_have_their_users_budget(
    pipe: SmallPipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("balloon_daemon.records.log.monotonic", lambda: 0.0)
    log = Log(pipe.writer, "text", verbose=False)
    said = []
    for number in range(FIRST_LINES + 3):
        log(VmDriven(VmId(number, "web"), "/run/web.qmp", GIB, 77, uid=1000), AT_S)
        said.append(read_one(pipe))
    assert [bool(line) for line in said] == [True] * FIRST_LINES + [False] * 3


def read_one(pipe: SmallPipe) -> str:
    """The line that waits; "" where none does."""
    try:
        return pipe.read()[0]
    except BlockingIOError:
        return ""
