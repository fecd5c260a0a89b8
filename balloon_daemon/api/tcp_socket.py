"""A TCP socket on which the metrics can be read, and nothing else be asked."""

import socket

from balloon_daemon.api.messages import Rights
from balloon_daemon.errors import ConfigError
from balloon_daemon.events import MetricsListening

BACKLOG = 16
"""How many clients may wait to be accepted."""


class TcpSocket:
    """The socket, listening and non-blocking. Implements ``Listener`` (``listeners.py``).

    Args:
        host: the IP address.
        port: the port; 0: any that is free.

    Attributes:
        sock: the socket.

    Raises:
        ConfigError: the socket cannot be bound there; the error names it and the remedy.
    """

    def __init__(self, host: str, port: int) -> None:
        self.sock = bound(host, port)
        try:
            self.sock.listen(BACKLOG)
            self.sock.setblocking(False)
        except OSError as err:
            self.sock.close()
            raise _refused(host, port, err) from err

    def begun(self) -> MetricsListening:
        """The event that says that clients can connect to this socket."""
        host, port = self.sock.getsockname()[:2]
        return MetricsListening(said(host, port))

    def rights_of(self, client: socket.socket) -> tuple[int, Rights]:
        """Whoever connects may read the metrics: of a TCP connection the kernel does not tell the
        peer's user (SO_PEERCRED), as it does of a Unix socket's."""
        return -1, Rights.SCRAPE

    def close_to_group(self) -> None:
        """Does nothing: only a socket file has a group whose members could be shut out."""

    def close(self) -> None:
        """Closes the socket."""
        self.sock.close()


def bound(host: str, port: int) -> socket.socket:
    """A socket that is bound and does not listen.

    Raises:
        ConfigError: the socket cannot be bound there; the error names it and the remedy.
    """
    try:
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as err:
        raise _refused(host, port, err) from err
    try:
        # A port from which connections were served a moment ago can be bound again at once.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
    except OSError as err:
        sock.close()
        raise _refused(host, port, err) from err
    return sock


def said(host: str, port: int) -> str:
    """An address as people write it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _refused(host: str, port: int, err: OSError) -> ConfigError:
    why = err.strerror or str(err)
    return ConfigError(
        f"--metrics {said(host, port)}: {why}; name another address or port, or let the service "
        "use the network (docs/metrics.md has the drop-in)"
    )
