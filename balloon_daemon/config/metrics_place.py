"""Where metrics go in addition to the API's socket: a TCP port, or a file for node_exporter."""

import socket
from pathlib import Path

from balloon_daemon.config.values import parse_path, shown
from balloon_daemon.errors import ConfigError
from balloon_daemon.named_tuple import NamedTuple

ENDING = ".prom"
"""node_exporter's textfile collector reads files with this ending alone."""


MOST_PORT = 65535


class MetricsPlace(NamedTuple):
    """A TCP port, or a file.

    Attributes:
        file: the file; None: it is a port.
        host: the port's IP address.
        port: the port; 0: any that is free.
    """

    file: Path | None = None
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        if self.file is not None:
            return str(self.file)
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_metrics(value: object) -> MetricsPlace:
    """A place, as operators write it: ``127.0.0.1:9710``, ``[::1]:9710`` or a path.

    Raises:
        ConfigError: it is neither; the error shows the value and names the remedy.
    """
    if isinstance(value, str) and value.startswith("/"):
        file = parse_path(value)
        if file.suffix != ENDING:
            raise ConfigError(
                f"{shown(value)} does not end in {ENDING}, and node_exporter reads no other file; "
                "name it so"
            )
        return MetricsPlace(file)
    host, colon, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if not (colon and port.isascii() and port.isdecimal() and int(port[:6]) <= MOST_PORT):
        raise ConfigError(
            f"{shown(value)} is neither ADDRESS:PORT nor a path; write it like "
            f'"127.0.0.1:9710" or "/var/lib/node-exporter/balloond{ENDING}"'
        )
    if ":" in host and host[0] + host[-1] == "[]":
        family, host = socket.AF_INET6, host[1:-1]
    else:
        family = socket.AF_INET
    try:
        host = socket.inet_ntop(family, socket.inet_pton(family, host))
    except (OSError, ValueError):  # ValueError: it has a zero byte.
        raise ConfigError(
            f'{shown(value)} has no IP address; write it like "127.0.0.1:9710" or "[::1]:9710"'
        ) from None
    return MetricsPlace(None, host, int(port[:6]))
