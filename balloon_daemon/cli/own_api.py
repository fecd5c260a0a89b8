"""Opens the API, where it is wanted and can be."""

import contextlib
import os
from pathlib import Path

from balloon_daemon.cli.default_directory import make_directory
from balloon_daemon.commands import Service
from balloon_daemon.config.model import default_socket
from balloon_daemon.errors import ConfigError
from balloon_daemon.events import ApiNotOpened
from balloon_daemon.records.bus import Bus

NOWHERE = Path("none")
"""The value of --api with which there is no API, not even a service's."""


def open_api(named: Path | None, bus: Bus, undo: contextlib.ExitStack) -> Service | None:
    """Opens the API's socket.

    A service has an API by default; if that cannot be opened, the service runs without it.

    Args:
        named: where, by the flag; None: by default.
        bus: gives the API its events.
        undo: gets the steps that undo the opening, should the start fail.

    Returns:
        The API's server; None: there is none.

    Raises:
        ConfigError: the API cannot be opened where the flag wants it.
    """
    path = _service_path() if named is None else named
    if path is None or path == NOWHERE:
        return None
    try:
        return _open(path, bus, undo)
    except ConfigError as err:
        if named is not None:
            raise
        bus.publish(ApiNotOpened(str(err)))
        return None


def _service_path() -> Path | None:
    """In the first directory that a service manager has made for this service; None: there is
    none."""
    directory = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    return Path(directory, "api.sock") if os.path.isabs(directory) else None


def _open(path: Path, bus: Bus, undo: contextlib.ExitStack) -> Service:
    # Imported here: a balloond without an API does not load what only that needs.
    try:
        from balloon_daemon.api.server import Server
        from balloon_daemon.api.socket_file import ApiSocket
        from balloon_daemon.records.recent import Recent
    except ModuleNotFoundError as err:
        raise ConfigError(
            f"API socket {path}: the API needs the package {err.name}, which is not installed; "
            "install it (python3-h11), or leave --api out"
        ) from err
    if path.parent == default_socket().parent:
        try:
            make_directory(path)
        except ConfigError as err:
            raise ConfigError(
                f"API socket {path}: {path.parent} cannot be made; name another path (--api)"
            ) from err
    api_socket = ApiSocket(path)
    undo.callback(api_socket.close)
    recent = Recent()
    bus.read_by(recent)
    return Server(api_socket, recent, bus.publish)
