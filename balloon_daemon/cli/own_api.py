"""Opens the API's socket, if an API is wanted and the socket can be opened."""

import contextlib
import os
import socket
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from balloon_daemon.cli.default_directory import make_directory
from balloon_daemon.commands import Service
from balloon_daemon.config.metrics_place import MetricsPlace
from balloon_daemon.config.model import default_socket
from balloon_daemon.errors import ConfigError, printable
from balloon_daemon.events import ApiNotOpened
from balloon_daemon.linux.directories import may_make_files, others_may_write
from balloon_daemon.linux.socket_holder import holder_of
from balloon_daemon.records.bus import Bus
from balloon_daemon.sizing.balloon_policy import PolicySettings

if TYPE_CHECKING:
    from balloon_daemon.api.listeners import Listener

NOWHERE = Path("none")
"""The value of --api with which there is no API, not even a service's."""

_MOST_PATH_BYTES = 107
"""The longest path of a Unix socket: sockaddr_un.sun_path has 108 bytes (linux/un.h), the zero at
its end included."""


def open_api(
    named: Path | None,
    settings: PolicySettings,
    bus: Bus,
    undo: contextlib.ExitStack,
    metrics: MetricsPlace | None = None,
    handed: Callable[[str], socket.socket | None] = lambda path: None,
) -> Service | None:
    """Opens the API's socket, and the TCP port of the metrics.

    A service has an API by default; if that cannot be opened, the service runs without it.

    Args:
        named: the socket's path that the flag gives; None: the default applies.
        settings: the numbers of ChromeOS's balloon policy, for the first line of traces.
        bus: gives the API its events.
        undo: gets the steps that undo the opening, should the start fail.
        metrics: where metrics go; None: nowhere but to the API's socket.
        handed: gives the listening socket that systemd hands over for a path; None: there is none.

    Returns:
        The server; None: there is none.

    Raises:
        ConfigError: the API cannot be opened where the flag wants it, or the port cannot.
    """
    path = api_place(named)
    sockets: list[Listener] = []
    if path is not None:
        try:
            sockets.append(_open(path, handed(os.fspath(path))))
            undo.callback(sockets[-1].close)
        except ConfigError as err:
            if named is not None:
                raise
            bus.publish(ApiNotOpened(str(err)))
    if metrics is not None and metrics.file is None:
        _check_h11(f"--metrics {metrics}: this", "--metrics")
        from balloon_daemon.api.tcp_socket import TcpSocket

        sockets.append(TcpSocket(metrics.host, metrics.port))
        undo.callback(sockets[-1].close)
    return _server(sockets, settings, bus) if sockets else None


def check_api(named: Path | None) -> ApiNotOpened | None:
    """Finds out whether the API could be opened, and makes nothing.

    Args:
        named: the socket's path that the flag gives; None: the default applies.

    Returns:
        Why a service would run without its API; None: it would have one, or wants none.

    Raises:
        ConfigError: the API could not be opened where the flag wants it.
    """
    path = api_place(named)
    if path is None:
        return None
    try:
        why = _why_not(path)
    except OSError as err:
        why = f"{err.strerror}; name another path (--api)"
    if not why:
        return None
    sentence = f"API socket {printable(str(path))}: {why}"
    if named is not None:
        raise ConfigError(sentence)
    return ApiNotOpened(sentence)


def _why_not(path: Path) -> str:
    """Why no API could be opened there, and the remedy; "" where it could."""
    # Imported here: only --check needs it.
    from importlib.util import find_spec

    if find_spec("h11") is None:
        return "the API needs the package h11; install it (python3-h11), or leave --api out"
    if len(os.fsencode(path)) > _MOST_PATH_BYTES:
        return f"it has more than {_MOST_PATH_BYTES} bytes; name a shorter path (--api)"
    parent = path.parent
    if not parent.is_dir():
        if parent == default_socket().parent and not os.path.lexists(parent):
            return ""  # balloond makes this directory at its start.
        return f"there is no directory {printable(str(parent))}; make it, or name another path"
    if why := others_may_write(parent):
        return f"{why}; name a path in a directory of your own"
    if not may_make_files(parent):
        return f"nothing can be made in {printable(str(parent))}; name another path (--api)"
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return ""
    if not stat.S_ISSOCK(status.st_mode):
        return "there is something else; name another path"
    return holder_of(path)


def api_place(named: Path | None) -> Path | None:
    """The path of the API's socket: the flag's, else a service's default; None: no API."""
    path = _service_path() if named is None else named
    return None if path == NOWHERE else path


def _service_path() -> Path | None:
    """The default path, in the first directory that a service manager has made for this service;
    None: there is no such directory."""
    directory = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    return Path(directory, "api.sock") if os.path.isabs(directory) else None


def _check_h11(what: str, flag: str) -> None:
    """Loads the API's server, and with it h11, which nothing else needs.

    Args:
        what: the part of balloond that needs it, for the message.
        flag: the flag that asks for that part: without it h11 is not needed.

    Raises:
        ConfigError: it is not installed.
    """
    # Imported here: a balloond without an API does not load it.
    try:
        import balloon_daemon.api.server  # noqa: F401
    except ModuleNotFoundError as err:
        raise ConfigError(
            f"{what} needs the package {err.name}, which is not installed; "
            f"install it (python3-h11), or leave {flag} out"
        ) from err


def _open(path: Path, handed: socket.socket | None) -> "Listener":
    _check_h11(f"API socket {path}: the API", "--api")
    from balloon_daemon.api.socket_file import ApiSocket

    if path.parent == default_socket().parent:
        try:
            make_directory(path)
        except ConfigError as err:
            raise ConfigError(
                f"API socket {path}: {path.parent} cannot be made; name another path (--api)"
            ) from err
    return ApiSocket(path, handed)


def _server(sockets: Sequence["Listener"], settings: PolicySettings, bus: Bus) -> Service:
    from balloon_daemon.api.server import Records, Server
    from balloon_daemon.api.traces import Traces
    from balloon_daemon.records.counters import Counters
    from balloon_daemon.records.recent import Recent
    from balloon_daemon.records.recorder import header_now
    from balloon_daemon.records.trace import encode_header

    # Make the first line of a trace from modules that are loaded here: an import while VMs are
    # served could wait for the lock of a directory that another user lists (inode->i_rwsem).
    traces = Traces(lambda: encode_header(header_now(settings)))
    records = Records(Recent(), traces, Counters())
    for reader in records:
        bus.read_by(reader)
    return Server(sockets, records, bus.publish)
