"""Tells which process and user are at the other end of a Unix socket."""

import socket
import struct
from typing import NamedTuple

_CREDENTIALS = struct.Struct("3i")


class Credentials(NamedTuple):
    """The peer of a Unix socket (SO_PEERCRED): the caller of connect(2), or listen(2)."""

    pid: int
    uid: int


def peer_of(sock: socket.socket) -> Credentials:
    """The process and user at the other end of a connected Unix socket."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return Credentials(*_CREDENTIALS.unpack(credentials)[:2])
