"""The sockets on which the API's server listens, as one."""

import select
import socket
from collections.abc import Iterator, Sequence
from typing import Protocol

from balloon_daemon.api.messages import Rights
from balloon_daemon.events import ApiListening, MetricsListening


class Listener(Protocol):
    """A socket that listens.

    Attributes:
        sock: the socket, non-blocking.
    """

    sock: socket.socket

    def begun(self) -> ApiListening | MetricsListening:
        """The event that says that clients can connect to this socket."""

    def rights_of(self, client: socket.socket) -> tuple[int, Rights]:
        """A connected client's user, -1 where it is not known, and what it may do."""

    def close_to_group(self) -> None:
        """Refuses clients that have only the right to read, from now on; a TCP socket, which has
        no such clients, stays as it is."""

    def close(self) -> None:
        """Closes the socket."""


class Listeners:
    """All sockets of one server.

    Args:
        sockets: the sockets.
    """

    def __init__(self, sockets: Sequence[Listener]) -> None:
        self._sockets = {one.sock.fileno(): one for one in sockets}
        self._are_watched = False

    def __iter__(self) -> Iterator[Listener]:
        return iter(self._sockets.values())

    def get(self, fd: int) -> Listener | None:
        """The socket with this descriptor; None: it is none of them."""
        return self._sockets.get(fd)

    def watch(self, epoll: select.epoll, events: int) -> None:
        """Has an epoll instance watch all of them for these events; 0: for none."""
        for fd in self._sockets:
            if self._are_watched:
                epoll.modify(fd, events)
            else:
                epoll.register(fd, events)
        self._are_watched = True
