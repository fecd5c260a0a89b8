"""Begins the trace and the history that ``--record`` and ``--history`` ask for."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from balloon_daemon.config.model import Config
from balloon_daemon.errors import ConfigError
from balloon_daemon.linux.apart import LowNumbers
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.records.bus import Bus
from balloon_daemon.records.history import History, check_place
from balloon_daemon.records.recorder import (
    LIMIT_BYTES,
    Recorder,
    check_trace,
    header_now,
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


@contextmanager
def record(path: Path, settings: PolicySettings, bus: Bus, low: LowNumbers) -> Iterator[None]:
    """Records all that is published until the block ends.

    Args:
        path: the trace's file.
        settings: the policies' numbers.
        bus: delivers events.
        low: starts the program that writes the file; closed once that has begun.

    Raises:
        ConfigError: the file cannot be made, or the program that writes it cannot be started.
    """
    file = OwnedFd(open_trace(path))
    try:
        scribe = Scribe("file_writer.py", [str(LIMIT_BYTES)], low, file.fileno())
    except OSError as err:
        raise ConfigError(f"--record: its writer cannot be started: {err}") from err
    finally:
        file.close()
        # The low numbers are free again for whoever starts programs later.
        low.close()
    recorder = Recorder(scribe, header_now(settings), bus.publish)
    bus.add(recorder)
    try:
        yield
    finally:
        bus.drain()
        recorder.close()


@contextmanager
def keep_history(path: Path, bus: Bus, low: LowNumbers) -> Iterator[None]:
    """Keeps a history until the block ends.

    Args:
        path: the history's file.
        bus: delivers events.
        low: starts the program that writes the file; closed once that has begun.

    Raises:
        ConfigError: its program cannot be started.
    """
    try:
        scribe = Scribe("history_writer.py", [str(path.absolute())], low)
    except OSError as err:
        raise ConfigError(f"--history: its writer cannot be started: {err}") from err
    finally:
        low.close()
    history = History(scribe, bus.publish)
    bus.add(history)
    try:
        yield
    finally:
        bus.drain()
        history.close()
