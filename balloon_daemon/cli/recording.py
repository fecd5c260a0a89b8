"""Begins the trace and the history that ``--record`` and ``--history`` ask for."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from balloon_daemon.config.model import Config
from balloon_daemon.errors import ConfigError, printable
from balloon_daemon.events import HistoryEnded, RecordingEnded
from balloon_daemon.linux.apart import LowNumbers
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.records.bus import Bus
from balloon_daemon.records.file_place import NoRoomError
from balloon_daemon.records.history import History
from balloon_daemon.records.history_file import BESIDE, check_place, lock_place
from balloon_daemon.records.recorder import (
    LIMIT_BYTES,
    Recorder,
    check_trace,
    earlier_traces,
    header_now,
    lock_trace,
    open_trace,
)
from balloon_daemon.records.scribe import Scribe
from balloon_daemon.sizing.balloon_policy import PolicySettings


def check_places(config: Config) -> None:
    """Raises ConfigError: a trace or a history cannot be written where it is wanted."""
    if config.record is not None:
        check_trace(config.record)
    if config.history is not None:
        check_place(config.history)
    if config.record is not None and config.history is not None:
        _check_apart(config.record, config.history)


def _check_apart(trace: Path, history: Path) -> None:
    """Raises ConfigError: a file of the trace would be one of the history."""
    names = {os.path.realpath(f"{history}{ending}") for ending in ("", *BESIDE)}
    for each in (trace, *earlier_traces(trace)):
        if os.path.realpath(each) in names:
            said = printable(str(each))
            raise ConfigError(f"--record and --history would both write {said}; name another file")


@contextmanager
def record(path: Path, settings: PolicySettings, bus: Bus, low: LowNumbers) -> Iterator[None]:
    """Writes published events to a trace until the block ends; writes nothing where the trace's
    disk is full at the start.

    Args:
        path: the trace's file.
        settings: the numbers of ChromeOS's balloon policy, for the trace's first line.
        bus: delivers events.
        low: starts the program that writes the file; closed once the program has begun.

    Raises:
        ConfigError: the file cannot be made, another balloond writes it, or the program that
            writes it cannot be started.
    """
    held = ExitStack()
    try:
        file = OwnedFd(open_trace(path))
    except NoRoomError as err:
        low.close()
        bus.publish(RecordingEnded(err.why))
        yield
        return
    try:
        held.enter_context(closing(lock_trace(file.fileno(), path)))
        scribe = Scribe("file_writer.py", [str(LIMIT_BYTES)], low, file.fileno())
    except OSError as err:
        raise ConfigError(f"--record: its writer cannot be started: {err}") from err
    finally:
        file.close()
        # Free the low descriptor numbers: other parts of balloond start programs later.
        low.close()
    recorder = Recorder(scribe, header_now(settings), bus.publish)
    bus.add(recorder)
    with held:
        try:
            yield
        finally:
            bus.drain()
            recorder.close()


@contextmanager
def keep_history(path: Path, bus: Bus, low: LowNumbers) -> Iterator[None]:
    """Keeps a history until the block ends; keeps none where its disk is full at the start.

    Args:
        path: the history's file.
        bus: delivers events.
        low: starts the program that writes the file; closed once the program has begun.

    Raises:
        ConfigError: another balloond keeps this history, or the program cannot be started.
    """
    held = ExitStack()
    try:
        held.enter_context(closing(lock_place(path)))
        scribe = Scribe("history_writer.py", [str(path.absolute())], low)
    except NoRoomError as err:
        bus.publish(HistoryEnded(err.why))
        scribe = None
    except OSError as err:
        raise ConfigError(f"--history: its writer cannot be started: {err}") from err
    finally:
        low.close()
    if scribe is None:
        yield
        return
    history = History(scribe, bus.publish)
    bus.add(history)
    with held:
        try:
            yield
        finally:
            bus.drain()
            history.close()
