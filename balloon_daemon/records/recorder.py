"""Writes the trace of ``--record``: a reader of events, with a program that writes the file."""

import contextlib
import os
import stat
from pathlib import Path
from time import time

from balloon_daemon.errors import ConfigError, printable
from balloon_daemon.events import Event, EventsLost, Publish, RecordingEnded, Stepped, Surveyed
from balloon_daemon.records.scribe import Scribe
from balloon_daemon.records.trace import (
    BEGINNING,
    Decided,
    Entry,
    Header,
    Lost,
    Read,
    encode_entry,
    encode_header,
)
from balloon_daemon.sizing.balloon_policy import PolicySettings
from balloon_daemon.units import MIB

LIMIT_BYTES = 64 * MIB
"""The largest trace. A quiet day takes 1.2 MiB for the host and 0.8 MiB for each careful VM."""


def header_now(settings: PolicySettings) -> Header:
    """The first line of a trace that begins now, of policies with these numbers."""
    return Header(time(), settings)


class Recorder:
    """Writes what the host's policy was told and what it decided. A ``Reader``.

    Args:
        scribe: writes the file.
        header: the trace's first line.
        publish: takes events.
    """

    def __init__(self, scribe: Scribe, header: Header, publish: Publish) -> None:
        self._scribe = scribe
        self._publish = publish
        self._lost = 0
        self._last_s = 0.0
        self._ended = False
        scribe.send(encode_header(header))

    def __call__(self, event: Event, at_s: float) -> None:
        """Writes an event's line.

        Args:
            event: the event.
            at_s: unused: an event that is recorded has its own time.
        """
        match event:
            case Stepped():
                self._write(entry_of(event))
            case Surveyed():
                self._write(Entry(event.at_s, Read(event.seen)))
                self._look_for_end()
            case EventsLost(lost):
                # Nobody knows whether these events would have been recorded.
                self._lost += lost

    def close(self) -> None:
        """Ends the trace."""
        self._scribe.close()

    def _write(self, entry: Entry) -> None:
        content = encode_entry(entry)
        if self._lost:
            content = encode_entry(Entry(entry.at_s, Lost(self._lost))) + content
        if self._scribe.send(content):
            self._lost = 0
        else:
            self._lost += 1

    def _look_for_end(self) -> None:
        why = self._scribe.why_ended()
        if why is not None and not self._ended:
            self._ended = True
            self._publish(RecordingEnded(why))


def entry_of(event: Stepped) -> Entry:
    """The line of a step."""
    decided = tuple(
        Decided(vm, decision.reason, decision.level, decision.target_bytes)
        for vm, decision, _ in event.decisions
    )
    return Entry(event.at_s, event.event, event.draws, dict(event.objections), decided)


def open_trace(path: Path) -> int:
    """Makes the file of a trace, for its owner alone, after ``check_trace``.

    A trace of an earlier balloond gets ``.old`` at the end of its name, so that a service that is
    started again leaves it, and its disk is not filled.

    Returns:
        The open file.

    Raises:
        ConfigError: it cannot be made.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, path.with_name(f"{path.name}.old"))
        return os.open(path, flags, 0o600)
    except OSError as err:
        raise ConfigError(f"--record {printable(str(path))}: {err.strerror}") from err


def check_trace(path: Path) -> None:
    """Raises ConfigError: there is no such directory, or another file is there."""
    name = printable(str(path))
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"--record {name}: there is no such directory; make it, or name another")
    try:
        status = os.lstat(path)
        if not stat.S_ISREG(status.st_mode) or (status.st_size and not _is_trace(path)):
            raise ConfigError(f"--record {name}: is there and no trace; name another file")
    except FileNotFoundError:
        pass
    except OSError as err:
        raise ConfigError(f"--record {name}: {err.strerror}") from err


def _is_trace(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(len(BEGINNING)) == BEGINNING
