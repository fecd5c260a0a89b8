"""Opens the API's server, and starts the writing of metrics to a file, as the settings say."""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from balloon_daemon.cli.own_api import open_api
from balloon_daemon.commands import Desk, Reloader, Service, Tracing
from balloon_daemon.config.metrics_place import MetricsPlace
from balloon_daemon.config.model import Config
from balloon_daemon.errors import ConfigError, printable
from balloon_daemon.events import MetricsFileEnded
from balloon_daemon.guests.open_guest import Low
from balloon_daemon.linux.apart import LowNumbers
from balloon_daemon.records.bus import Bus


class _Together:
    """Starts and closes several services as one. Implements ``Service``."""

    def __init__(self, services: Sequence[Service]) -> None:
        self._services = services

    def start(self, desk: Desk, tracing: Tracing, reloader: Reloader | None) -> None:
        for service in self._services:
            service.start(desk, tracing, reloader)

    def close(self) -> None:
        for service in self._services:
            service.close()


@contextlib.contextmanager
def open_services(
    config: Config,
    bus: Bus,
    undo: contextlib.ExitStack,
    low: Low,
    handed: Callable[[str], socket.socket | None],
) -> Iterator[Service | None]:
    """Opens the API's socket, and what metrics need in addition to it.

    Args:
        config: the settings.
        bus: delivers events.
        undo: gets the steps that undo the opening, should the start fail.
        low: gives the low descriptor numbers that are needed to start the program which writes the
            file (``LowNumbers``).
        handed: gives the listening socket that systemd hands over for a path; None: there is none.

    Raises:
        ConfigError: something cannot be opened where a setting wants it.
    """
    metrics = config.metrics
    file = None if metrics is None else metrics.file
    api = open_api(config.api, config.policy, bus, undo, metrics, handed)
    if file is None:
        yield api
        return
    with _metrics_file(file, bus, low()) as writing:
        services = [each for each in (api, writing) if each is not None]
        yield _Together(services) if len(services) == 2 else next(iter(services), None)


@contextlib.contextmanager
def _metrics_file(path: Path, bus: Bus, low: LowNumbers) -> Iterator[Service | None]:
    """Writes metrics to a file until the block ends; gives None, and writes nothing, where the
    file's disk is full at the start."""
    # Imported here: a balloond that writes no such file does without it.
    from balloon_daemon.api.textfile import MetricsFile
    from balloon_daemon.records.counters import Counters
    from balloon_daemon.records.file_place import NoRoomError
    from balloon_daemon.records.metrics_file import lock_metrics_file
    from balloon_daemon.records.recent import Recent
    from balloon_daemon.records.scribe import Scribe

    with contextlib.ExitStack() as held:
        try:
            held.enter_context(contextlib.closing(lock_metrics_file(path)))
            scribe = Scribe("metrics_writer.py", [os.fspath(path)], low)
            held.callback(scribe.close)
        except NoRoomError as err:
            bus.publish(MetricsFileEnded(err.why))
            scribe = None
        except OSError as err:
            raise ConfigError(f"--metrics: its writer cannot be started: {err}") from err
        finally:
            # Free the low descriptor numbers: other parts of balloond start programs later.
            low.close()
        if scribe is None:
            yield None
            return
        recent, counters = Recent(), Counters()
        bus.read_by(recent)
        bus.read_by(counters)
        yield MetricsFile(scribe, recent, counters, bus.publish)


def check_metrics(place: MetricsPlace | None) -> None:
    """Finds out whether metrics can go where they are wanted, and makes nothing.

    Raises:
        ConfigError: they cannot; the error names the place and the remedy.
    """
    if place is None:
        return
    if place.file is not None:
        from balloon_daemon.records.metrics_file import check_metrics_file

        check_metrics_file(place.file)
        return
    # Imported here: only --check needs it.
    from importlib.util import find_spec

    if find_spec("h11") is None:
        said = printable(str(place))
        raise ConfigError(f"--metrics {said}: it needs the package h11; install it (python3-h11)")
    from balloon_daemon.api.tcp_socket import bound

    bound(place.host, place.port).close()
