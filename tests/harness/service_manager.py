"""Takes the place of systemd: its notification socket and its store of descriptors."""

import os
import socket
import threading
from pathlib import Path


class ServiceManager:
    """Receives a service's messages, and stores descriptors for it. Call `close` at the end.

    Args:
        path: the path of its notification socket.
        capacity: how many descriptors it stores; it closes further ones, as systemd does.
    """

    def __init__(self, path: Path, capacity: int) -> None:
        self.path = path
        self._capacity = capacity
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(str(path))
        self._stored: dict[str, int] = {}
        self.said: list[str] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    @property
    def names(self) -> set[str]:
        """The names that it stores."""
        return set(self._stored)

    def _run(self) -> None:
        while True:
            message, fds, _, _ = socket.recv_fds(self._sock, 4096, 8)
            if not message:
                return
            self._handle(message.decode(), fds)

    def _handle(self, message: str, fds: list[int]) -> None:
        words = dict(line.partition("=")[::2] for line in message.split("\n"))
        name = words.get("FDNAME", "")
        if "FDSTORE" in words and len(self._stored) < self._capacity:
            self._drop(name)
            self._stored[name] = fds.pop()
        elif "FDSTOREREMOVE" in words:
            self._drop(name)
        for fd in fds:
            os.close(fd)
        self.said.append(message)

    def _drop(self, name: str) -> None:
        if name in self._stored:
            os.close(self._stored.pop(name))

    def close(self) -> None:
        """Ends it, and closes all stored descriptors."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"", str(self.path))
        self._thread.join()
        self._sock.close()
        for name in self.names:
            self._drop(name)
