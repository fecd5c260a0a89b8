"""What every attack of a hostile VMM user shares: its connections, none of which ever waits."""

import array
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from random import Random

BACK_OFF_S = 0.001
"""Where nothing is taken: an enemy that spins would measure the machine, not balloond."""


class Line:
    """One connection of the enemy's, which sends without ever waiting.

    Args:
        sock: connected; the line's from here on.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._rest = b""

    def close(self) -> None:
        self.sock.close()

    def push(self, content: bytes, fds: Sequence[int] = ()) -> bool:
        """Sends content; False where the queue is full, and then nothing of it is sent.

        Raises:
            OSError: balloond has hung up.
        """
        try:
            if self._rest:
                self._rest = self._rest[self.sock.send(self._rest) :]
                if self._rest:
                    return False
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
            sent = self.sock.sendmsg([content], rights if fds else [])
        except BlockingIOError:
            return False
        self._rest = content[sent:]
        return True

    def read(self) -> int:
        """Takes the replies that wait, and tells how many bytes there were.

        Raises:
            OSError: balloond has hung up.
        """
        try:
            content = self.sock.recv(1 << 16)
        except BlockingIOError:
            return 0
        if not content:
            raise ConnectionResetError
        return len(content)


class Enemy:
    """What all attacks share.

    Args:
        path: balloond's socket.
        device: names the device that the enemy has taken over: its controller's socket as the
            command line has it, and the device's name.
        random: decides everything.
    """

    def __init__(self, path: str, device: tuple[str, str], random: Random) -> None:
        self._path = path
        self.device = device
        self.random = random
        self.counts: Counter[str] = Counter()
        self.at_work = False
        """Set by an attack once it has done all of it for the first time."""
        self.open: dict[Line, None] = {}
        """Its connections, the oldest first."""
        self.held: list[socket.socket] = []
        """What has to stay open for an attack to hurt."""

    def connect(self) -> Line | None:
        """Another connection; None where none is to be had right now."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            sock.connect(self._path)
        except OSError:
            sock.close()
            self.counts["refused"] += 1
            self.pause()
            return None
        self.counts["connections"] += 1
        line = Line(sock)
        self.open[line] = None
        return line

    def leave(self, line: Line | None) -> None:
        """Hangs up."""
        if line is not None:
            self.open.pop(line, None)
            line.close()

    def leave_all(self) -> None:
        """Hangs up everywhere and lets go of everything."""
        for line in self.open:
            line.close()
        for sock in self.held:
            sock.close()
        self.open.clear()
        self.held.clear()

    def say(
        self, line: Line, said: Sequence[tuple[bytes, Sequence[int]]], *, reads: bool = True
    ) -> Iterator[None]:
        """Sends messages one after the other, however long balloond takes over them.

        Raises:
            OSError: balloond has hung up.
        """
        for content, fds in said:
            while not line.push(content, fds):
                if reads:
                    line.read()
                self.pause()
                yield
            self.counts["messages"] += 1
            if reads:
                line.read()

    def pause(self) -> None:
        """Waits for a moment."""
        time.sleep(BACK_OFF_S)


Attack = Callable[[Enemy], Iterator[None]]
"""Attacks for ever, and comes back after each small step."""
