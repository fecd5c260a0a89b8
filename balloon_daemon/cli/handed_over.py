"""The listening sockets that systemd's socket units hand over, until a part of balloond takes and
serves them."""

import os
import socket
import stat
from collections.abc import Iterator

from balloon_daemon.errors import ConfigError, printable
from balloon_daemon.events import SocketUnitNotServed
from balloon_daemon.linux.systemd import take_sockets
from balloon_daemon.named_tuple import NamedTuple


class _Socket(NamedTuple):
    unit: str
    sock: socket.socket


class HandedOver:
    """The sockets, by their paths.

    Args:
        passed: the socket units' names, and their sockets.

    Raises:
        ConfigError: one of them is no listening UNIX stream socket with a file at its path.
    """

    def __init__(self, passed: list[tuple[str, socket.socket]]) -> None:
        self._sockets: dict[str, _Socket] = {}
        for unit, sock in passed:
            if why := _why_not(sock):
                for _, each in passed:
                    each.close()
                raise ConfigError(f"{printable(unit)}: {why}")
            self._sockets[sock.getsockname()] = _Socket(unit, sock)

    def take(self, path: str) -> socket.socket | None:
        """The socket at a path, which the caller owns from here on; None: there is none."""
        found = self._sockets.pop(path, None)
        return None if found is None else found.sock

    def close(self) -> Iterator[SocketUnitNotServed]:
        """Closes the sockets that no ``take`` has returned, and yields an event for each."""
        for path, (unit, sock) in self._sockets.items():
            sock.close()
            yield SocketUnitNotServed(unit, path)
        self._sockets.clear()


def taken_over_sockets() -> HandedOver:
    """The sockets that this process was started with.

    Raises:
        ConfigError: as for ``HandedOver``.
    """
    return HandedOver(take_sockets())


def _why_not(sock: socket.socket) -> str:
    """What is wrong with a socket, and the remedy; "": nothing."""
    stream = sock.family == socket.AF_UNIX and sock.type == socket.SOCK_STREAM
    if not stream or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return "it hands over no UNIX stream socket that listens: give ListenStream= a path"
    path = sock.getsockname()
    if not isinstance(path, str) or not os.path.isabs(path):
        return "its socket has no file: give ListenStream= a path"
    try:
        is_socket = stat.S_ISSOCK(os.lstat(path).st_mode)
    except OSError as err:
        return f"{printable(path)}: {err.strerror}; start that unit anew, with balloond stopped"
    return "" if is_socket else f"{printable(path)}: there is something else; remove it"
