"""Begins the trace that ``--record`` asks for."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import time

from balloon_daemon.errors import ConfigError
from balloon_daemon.linux.apart import LowNumbers
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.records.bus import Bus
from balloon_daemon.records.recorder import LIMIT_BYTES, Recorder, open_trace
from balloon_daemon.records.scribe import Scribe
from balloon_daemon.records.trace import Header
from balloon_daemon.sizing.balloon_policy import PolicySettings


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
        scribe = Scribe(file.fileno(), LIMIT_BYTES, low)
    except OSError as err:
        raise ConfigError(f"--record: its writer cannot be started: {err}") from err
    finally:
        file.close()
        # The low numbers are free again for whoever starts programs later.
        low.close()
    recorder = Recorder(scribe, Header(time(), settings), bus.publish)
    bus.add(recorder)
    try:
        yield
    finally:
        bus.drain()
        recorder.close()
