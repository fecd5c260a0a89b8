"""Writes the trace of ``--record``: a reader of events, with a program that writes the file."""

import contextlib
import os
import stat
from itertools import pairwise
from pathlib import Path
from time import time

from balloon_daemon.errors import ConfigError, printable
from balloon_daemon.events import Event, EventsLost, Publish, RecordingEnded, Stepped, Surveyed
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.linux.file_lock import is_locked, lock_file
from balloon_daemon.records.entries import entries_of
from balloon_daemon.records.file_place import check_place, not_made
from balloon_daemon.records.scribe import Scribe
from balloon_daemon.records.trace import (
    BEGINNING,
    Entry,
    Header,
    Lost,
    encode_entry,
    encode_header,
)
from balloon_daemon.sizing.balloon_policy import PolicySettings
from balloon_daemon.units import MIB

LIMIT_BYTES = 64 * MIB
"""The largest trace. A quiet day takes 1.2 MiB for the host and 0.8 MiB for each careful VM."""

KEPT = 5
"""How many traces of earlier balloonds are kept; older ones are deleted."""

_TAKEN = "another balloond that runs writes it; name another file"


def header_now(settings: PolicySettings) -> Header:
    """The first line of a trace that begins now.

    Args:
        settings: the numbers of ChromeOS's balloon policy.
    """
    return Header(time(), settings)


class Recorder:
    """Writes each event that the sizing policy handles, and what the policy decides. The event bus
    calls this object with each event: it is a ``Reader`` (``records/bus.py``).

    Args:
        scribe: hands lines to the program that writes the file.
        header: the trace's first line.
        publish: called with each event to be published.
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
            case Stepped() | Surveyed():
                for entry in entries_of(event):
                    self._write(entry)
                if isinstance(event, Surveyed):
                    self._look_for_end()
            case EventsLost(lost):
                # Count all events that the bus has dropped: it does not tell which of them the
                # trace would have had.
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


def open_trace(path: Path) -> int:
    """Makes the file of a trace, for its owner alone, after ``check_trace``.

    Traces of earlier balloonds are kept as ``FILE.1``, the newest, to ``FILE.5``, so that a
    service that is started again leaves them, and its disk is not filled.

    Returns:
        The open file.

    Raises:
        NoRoomError: the disk is full.
        ConfigError: the file cannot be made, or another balloond is writing it.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with contextlib.suppress(FileNotFoundError):
            _keep_earlier(path)
        return os.open(path, flags, 0o600)
    except OSError as err:
        raise not_made("--record", path, err) from err


def lock_trace(file: int, path: Path) -> OwnedFd:
    """Keeps other balloonds from a trace for as long as this one runs.

    The file is opened a second time: its writer, which may end later than balloond, must not hold
    the lock, or a service could not be started again at once.

    Args:
        file: the file that ``open_trace`` has opened.
        path: its path.

    Returns:
        A descriptor of the file: the lock is held until this descriptor is closed.

    Raises:
        ConfigError: the file cannot be locked.
    """
    try:
        lock = OwnedFd(os.open(f"/proc/self/fd/{file}", os.O_RDONLY | os.O_CLOEXEC))
    except OSError as err:
        raise ConfigError(f"--record {printable(str(path))}: {err.strerror}") from err
    if lock_file(lock.fileno()):
        return lock
    lock.close()
    raise _taken(path)


def _keep_earlier(path: Path) -> None:
    """Renames an existing trace FILE to FILE.1, and an existing FILE.1 to FILE.2, and so on.

    Raises:
        FileNotFoundError: there is no such trace.
        OSError: a trace cannot be renamed.
        ConfigError: another balloond is writing the trace.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    with contextlib.closing(OwnedFd(os.open(path, flags))) as earlier:
        # Another balloond that was started at the same time may have replaced it.
        if not lock_file(earlier.fileno()) or not os.path.samestat(
            os.fstat(earlier.fileno()), os.lstat(path)
        ):
            raise _taken(path)
        names = earlier_traces(path)
        free = (n for n, name in enumerate(names, 1) if not os.path.lexists(name))
        for older, newer in pairwise((*reversed(names[: next(free, KEPT)]), path)):
            os.rename(newer, older)


def earlier_traces(path: Path) -> list[Path]:
    """The names of traces that were written before one, the newest first."""
    return [path.with_name(f"{path.name}.{number}") for number in range(1, KEPT + 1)]


def check_trace(path: Path) -> None:
    """Finds out whether a trace can be written to a file, and changes nothing.

    Raises:
        ConfigError: no trace can be written there, other users could replace it, the file is not a
            trace, or another balloond is writing it.
    """
    check_place("--record", path, _why_not)


def _why_not(path: Path) -> str:
    for each in (path, *earlier_traces(path)):
        if not _is_free(each):
            which = "" if each is path else f"{printable(str(each))} "
            return f"{which}is there and no trace; name another file"
    return _TAKEN if is_locked(path) else ""


def _taken(path: Path) -> ConfigError:
    return ConfigError(f"--record {printable(str(path))}: {_TAKEN}")


def _is_free(path: Path) -> bool:
    """Whether a path is free for a trace: it does not exist, or is an empty file or a trace."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return True
    return stat.S_ISREG(status.st_mode) and (status.st_size == 0 or _is_trace(path))


def _is_trace(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(len(BEGINNING)) == BEGINNING
