"""A small process that holds descriptors for a balloond without systemd, and does nothing else.

Runs by itself (``python -m balloon_daemon.handover.fd_keeper PATH``), started by ``balloond
--keep-fds`` in a session of its own, so that what kills the daemon spares it. It reads no byte of
a guest or a VMM: it is handed descriptors with names, and hands them out again. It ends when it is
told to forget, or when nobody has been connected for a while and a new balloond has not come. A
VMM that ends in that while takes its guest's descriptors with it, or memory would stay taken for
nobody.
"""

import array
import os
import select
import signal
import socket
import struct
import sys
import time

# Kept free of the package's modules on purpose: this process should be as small as it can be.
TAKE, END, FORGET, BUSY = b"FDTAKE=1", b"FDEND=1", b"FDFORGET=1", b"FDBUSY=1"
PATIENCE_S = 600.0
"""How long to hold on without any balloond: a new one comes in seconds or not at all."""

RETRY_S = 0.1
MAX_KEPT = 16384
_CREDENTIALS = struct.Struct("3i")


def listen(path: str) -> socket.socket:
    """Binds the keeper's socket; only its owner may connect."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    umask = os.umask(0o177)
    try:
        try:
            sock.bind(path)
        except OSError:
            # The caller found nobody answering here: it is a dead keeper's.
            os.unlink(path)
            sock.bind(path)
    finally:
        os.umask(umask)
    sock.listen(8)
    return sock


class Keeper:
    """Descriptors by name; all of one guest have what stands before the first dot in common."""

    def __init__(self) -> None:
        self.kept: dict[str, int] = {}
        self._ends: set[str] = set()

    def handle(self, message: bytes, fds: list[int]) -> bool:
        """Takes one message; False where it says to forget everything and end."""
        if message == FORGET:
            return False
        words = dict(line.partition("=")[::2] for line in message.decode("ascii").split("\n"))
        name = words.get("FDNAME", "")
        if words.get("FDSTORE") == "1" and len(fds) == 1 and len(self.kept) < MAX_KEPT:
            self._drop(name)
            self.kept[name] = fds.pop()
            if words.get("FDVMM") == "1":
                self._ends.add(name)
        elif words.get("FDSTOREREMOVE") == "1":
            self._drop(name)
        for fd in fds:
            os.close(fd)
        return True

    def hand_out(self, sock: socket.socket) -> None:
        """Sends a duplicate of everything; it is kept all the same."""
        for name, fd in self.kept.items():
            rights = array.array("i", [fd])
            sock.sendmsg(
                [f"FDNAME={name}".encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
            )
        sock.send(END)

    def ends(self) -> list[int]:
        """The descriptors whose hang-up is the end of their guest: its VMM's connections."""
        return [self.kept[name] for name in self._ends]

    def end(self, fd: int) -> None:
        """Drops the whole guest whose VMM has hung up."""
        (end,) = (name for name in self._ends if self.kept[name] == fd)
        guest = end.partition(".")[0] + "."
        for name in [name for name in self.kept if name.startswith(guest)]:
            self._drop(name)

    def _drop(self, name: str) -> None:
        self._ends.discard(name)
        if name in self.kept:
            os.close(self.kept.pop(name))


def _receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    message, ancillary, _, _ = sock.recvmsg(512, socket.CMSG_SPACE(4 * 8), socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for _, _, packed in ancillary:
        fds.frombytes(packed[: len(packed) // 4 * 4])
    return message, fds.tolist()


def serve(listener: socket.socket) -> None:
    """Serves balloonds, one after the other, until told to forget or left alone too long."""
    keeper = Keeper()
    clients: dict[int, socket.socket] = {}
    served: int | None = None
    poller = select.poll()
    poller.register(listener, select.POLLIN)
    while True:
        # A successor hears of hang-ups by itself, and says what is to go.
        ends = [] if clients else keeper.ends()
        for fd in ends:
            poller.register(fd, 0)
        ready = poller.poll(None if clients else PATIENCE_S * 1000)
        for fd in ends:
            poller.unregister(fd)
        if not ready:
            return
        # Whoever hung up first, then whoever comes: a successor may come in the same moment.
        for fd, _ in sorted(ready, key=lambda event: event[0] == listener.fileno()):
            if fd in ends:
                keeper.end(fd)
                continue
            if fd == listener.fileno():
                try:
                    client, _ = listener.accept()
                except OSError:
                    # No descriptor left: again later, as it stays readable.
                    time.sleep(RETRY_S)
                    continue
                peer = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
                if _CREDENTIALS.unpack(peer)[1] != os.geteuid():
                    client.close()
                    continue
                clients[client.fileno()] = client
                poller.register(client, select.POLLIN)
                continue
            client = clients[fd]
            try:
                message, fds = _receive(client)
                if message == TAKE and served not in (None, fd):
                    # Two balloonds on the same guests would be one too many.
                    client.send(BUSY)
                elif message == TAKE:
                    served = fd
                    keeper.hand_out(client)
                elif message and not keeper.handle(message, fds):
                    return
            except (OSError, UnicodeDecodeError):
                message = b""
            if not message:
                poller.unregister(client)
                del clients[fd]
                client.close()
                served = None if served == fd else served


def main() -> int:
    """Runs the keeper at the path in the first argument."""
    path = sys.argv[1]
    # The terminal's and the service manager's signals are for balloond, which tells us.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    listener = listen(path)
    ours = os.stat(path)
    try:
        serve(listener)
    finally:
        _unlink(path, ours)
    return 0


def _unlink(path: str, ours: os.stat_result) -> None:
    """Removes our socket; not that of another keeper, which has come in its place meanwhile."""
    try:
        if os.path.samestat(os.stat(path), ours):
            os.unlink(path)
    except FileNotFoundError:
        pass


if __name__ == "__main__":
    sys.exit(main())
