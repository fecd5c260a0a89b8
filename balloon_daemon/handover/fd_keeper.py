"""A small process that holds descriptors for a balloond without systemd, and does nothing else.

Runs by itself (``python -I fd_keeper.py PATH FD``), started by ``balloond --keep-fds`` in a
session of its own, so that what kills the daemon spares it. It speaks with that balloond through
FD, a socket that it is born with, and with those that come later at PATH. It reads no byte of a
guest or a VMM: it is handed descriptors with names, and hands them out again. It has nowhere to
say anything: where it cannot begin, its exit status says why. It ends when it is told to forget,
or when nobody has been connected for a while and a new balloond has not come. A VMM that ends in
that while takes its guest's descriptors with it, or memory would stay taken for nobody.
"""

import _thread
import array
import errno
import fcntl
import os
import select
import signal
import socket
import stat
import struct
import sys
import time

# Kept free of the package's modules on purpose: this process should be as small as it can be.
TAKE, END, FORGET, BUSY = b"FDTAKE=1", b"FDEND=1", b"FDFORGET=1", b"FDBUSY=1"
"""What no other store speaks: hand everything out; that was all; drop it and end; no, for another
balloond is connected."""

ANSWERS = b"FDANSWERS=1"
"""Before END: what cannot be kept is answered, and ``FDREPLACES=`` understood. An older keeper,
which may still be there when a newer balloond comes, does neither."""

PATIENCE_S = 600.0
"""How long to hold on without any balloond: a new one comes in seconds or not at all."""

EXIT_ERRNO = 100
"""Exit status beyond it: an error's number (errno(3)); itself: a bug, or called wrongly."""

RETRY_S = 0.1
MAX_KEPT = 65536
"""How many descriptors it keeps, if it may have as many open; balloond counts them (``room``)."""

MESSAGE_BYTES = 1 << 16
"""More than the names of all descriptors of one guest take."""

MAX_HANGING = 16
"""Closes that hang at a time; what comes beyond that stays open until one of them ends."""

MAX_FREEING = 16
"""Closes of memory at a time, which all end: they wait for none of those."""

SMALL_BYTES = 1 << 20
"""Memory that is freed in no time, such as a guest's state."""

_CREDENTIALS = struct.Struct("3i")


def listen(path: str) -> socket.socket:
    """Binds the keeper's socket; only its owner may connect.

    Raises:
        OSError: it cannot be made, or there is something else.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    umask = os.umask(0o177)
    try:
        try:
            sock.bind(path)
        except OSError as err:
            if err.errno != errno.EADDRINUSE or not is_dead_keepers(path):
                raise
            os.unlink(path)
            sock.bind(path)
        sock.listen(8)
    except BaseException:
        sock.close()
        raise
    finally:
        os.umask(umask)
    return sock


def is_dead_keepers(path: str) -> bool:
    """Whether a file is a socket of this user at which nobody listens any more."""
    status = os.lstat(path)
    if not stat.S_ISSOCK(status.st_mode) or status.st_uid != os.geteuid():
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        probe.setblocking(False)
        return probe.connect_ex(path) == errno.ECONNREFUSED


class Keeper:
    """Descriptors by name; all of one guest have what stands before the first dot in common."""

    def __init__(self) -> None:
        self.kept: dict[str, int] = {}
        self._losses: dict[str, int] = {}
        self._ends: set[str] = set()
        self._dropped, self._hanging = list[int](), set[object]()
        self._memory, self._freeing = list[int](), set[object]()

    def handle(self, message: bytes, fds: list[int]) -> bytes:
        """Takes one message. Returns the answer, empty where there is none.

        What a state replaces (``FDREPLACES=``, names with spaces between them) goes once the state
        is kept, and only if whoever says so knows of all that was lost of that guest
        (``FDLOSSES=``): the state may name what is not here, and then the one before it is all
        that there is. Who has lost something says what is to stay instead (``FDKEEPS=``).
        """
        words = dict(line.partition("=")[::2] for line in message.decode("ascii").split("\n"))
        name, answer = words.get("FDNAME", ""), b""
        if words.get("FDSTOREREMOVE") == "1":
            self._drop(name)
        elif words.get("FDSTORE") == "1":
            guest = name.partition(".")[0]
            # Without one: there was no room for it on its way (recvmsg(2), MSG_CTRUNC).
            if len(fds) != 1 or len(self.kept) >= MAX_KEPT:
                self._losses[guest] = losses = self._losses.get(guest, 0) + 1
                answer = f"FDLOST={name}\nFDLOSSES={losses}".encode()
            else:
                self._drop(name)
                self.kept[name] = fds.pop()
                if words.get("FDVMM") == "1":
                    self._ends.add(name)
                if words.get("FDLOSSES") == str(self._losses.get(guest, 0)):
                    self._replace(name, guest, words)
        self.close(fds)
        return answer

    def _replace(self, name: str, guest: str, words: dict[str, str]) -> None:
        gone = words.get("FDREPLACES", "").split()
        if "FDKEEPS" in words:
            stay = {name, *words["FDKEEPS"].split()}
            gone = [key for key in self.kept if key.startswith(f"{guest}.") and key not in stay]
        for each in gone:
            self._drop(each)

    def hand_out(self, sock: socket.socket) -> None:
        """Sends a duplicate of everything; it is kept all the same."""
        self._losses.clear()
        for name, fd in self.kept.items():
            rights = array.array("i", [fd])
            sock.sendmsg(
                [f"FDNAME={name}".encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
            )
        sock.send(ANSWERS)
        sock.send(END)

    def ends(self) -> list[int]:
        """The descriptors whose hang-up is the end of their guest: its VMM's connections."""
        return [self.kept[name] for name in self._ends]

    def end(self, fd: int) -> None:
        """Drops the whole guest whose VMM has hung up."""
        for end in [name for name in self._ends if self.kept[name] == fd]:
            guest = end.partition(".")[0] + "."
            for name in [name for name in self.kept if name.startswith(guest)]:
                self._drop(name)

    def _drop(self, name: str) -> None:
        self._ends.discard(name)
        if name in self.kept:
            self.close([self.kept.pop(name)])

    def close(self, fds: list[int]) -> None:
        """Closes what is wanted no more, in a thread where that may take long, or for ever.

        Whoever closes it last has to wait, and nobody knows whether we or our balloond will. A
        thread is what a process may have that forks nothing: it shares its descriptors. Memory
        has threads of its own: whoever has all others wait would keep that of every VM.
        """
        for fd in fds:
            held = _memory_bytes(fd)
            if held is None:
                self._dropped.append(fd)
            elif held > SMALL_BYTES:
                self._memory.append(fd)
            else:
                os.close(fd)
        _start_closing(self._memory, self._freeing, MAX_FREEING)
        _start_closing(self._dropped, self._hanging, MAX_HANGING)


def _start_closing(waiting: list[int], threads: set[object], most: int) -> None:
    """Has what waits closed, in so many threads at most."""
    for _ in range(min(len(waiting), most - len(threads))):
        # Not by a number, which another one has as soon as its close has begun.
        threads.add(mark := object())
        try:
            _thread.start_new_thread(_close_waiting, (waiting, threads, mark))
        except RuntimeError:
            # No thread to be had: with what is dropped next.
            threads.discard(mark)
            return


def _close_waiting(waiting: list[int], threads: set[object], mark: object) -> None:
    """A thread's life: it closes what waits, one after the other."""
    try:
        while waiting:
            try:
                os.close(waiting.pop(0))
            except (OSError, IndexError):
                continue  # Closed it is, whatever its file had to say; or another thread has it.
    finally:
        threads.discard(mark)


def _memory_bytes(fd: int) -> int | None:
    """What memory it holds, which nobody can watch; None: it is none. Asks no file of others'.

    Not its length, which whoever has made it may leave small (fallocate(2), FALLOC_FL_KEEP_SIZE).
    The last close of anything that an epoll instance watches, an eventfd too, waits for a lock of
    it, which whoever has it may hold for as long as they like.
    """
    try:
        # Answered by shmem and hugetlbfs alone, and by the kernel itself.
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        return None
    return os.fstat(fd).st_blocks * 512


class Client:
    """A balloond that is connected.

    Args:
        sock: its connection, the client's from here on.
        pid: its process.

    Raises:
        OSError: it is gone already.
    """

    def __init__(self, sock: socket.socket, pid: int) -> None:
        self.sock = sock
        # Beside the connection: a child of it that hangs may keep that open after its death.
        self.life = os.pidfd_open(pid)

    def close(self) -> None:
        """Lets go of it."""
        self.sock.close()
        os.close(self.life)

    def receive(self) -> tuple[bytes, list[int]] | None:
        """The next message with its descriptors, empty once it has hung up; None: none waits."""
        try:
            message, ancillary, _, _ = self.sock.recvmsg(
                MESSAGE_BYTES,
                socket.CMSG_SPACE(4 * 8),
                socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT,
            )
        except BlockingIOError:
            return None
        except OSError:
            return b"", []
        fds = array.array("i")
        for _, _, packed in ancillary:
            fds.frombytes(packed[: len(packed) // 4 * 4])
        return message, fds.tolist()


class Server:
    """Serves balloonds, one after the other.

    Args:
        listener: where they connect.
        first: a connection to the one that has started this process, if one has.
    """

    def __init__(self, listener: socket.socket, first: socket.socket | None = None) -> None:
        self._listener = listener
        self._keeper = Keeper()
        self._clients: dict[int, Client] = {}
        """Each by its connection and by its life."""
        self._served: Client | None = None
        self._poller = select.poll()
        self._poller.register(listener, select.POLLIN)
        if first is not None:
            self._admit(first)

    def run(self) -> None:
        """Serves until told to forget or left alone too long."""
        while True:
            # A successor hears of hang-ups by itself, and says what is to go.
            ends = [] if self._clients else self._keeper.ends()
            for fd in ends:
                self._poller.register(fd, 0)
            ready = self._poller.poll(None if self._clients else PATIENCE_S * 1000)
            for fd in ends:
                self._poller.unregister(fd)
            if not ready:
                return
            # Whoever hung up first, then whoever comes: a successor may come in the same moment.
            for fd, _ in sorted(ready, key=lambda event: event[0] == self._listener.fileno()):
                if fd in ends:
                    self._keeper.end(fd)
                elif fd == self._listener.fileno():
                    self._accept()
                elif fd in self._clients and not self._hear(self._clients[fd], fd):
                    return

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            # No descriptor left: again later, as it stays readable.
            time.sleep(RETRY_S)
            return
        self._admit(sock)

    def _admit(self, sock: socket.socket) -> None:
        """Hears a peer from here on, if it is of our own user."""
        peer = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid, uid, _ = _CREDENTIALS.unpack(peer)
        try:
            if uid != os.geteuid():
                raise PermissionError
            client = Client(sock, pid)
        except OSError:
            sock.close()
            return
        for fd in (sock.fileno(), client.life):
            self._clients[fd] = client
            self._poller.register(fd, select.POLLIN)

    def _hear(self, client: Client, fd: int) -> bool:
        """Takes a message, or all that waits of one that is dead; False: forget and end."""
        dead = fd == client.life
        while (received := client.receive()) is not None:
            message, fds = received
            if not message:
                dead = True
                break
            if not self._take(client, message, fds):
                return False
            if not dead:
                break
        if dead:
            for gone in (client.sock.fileno(), client.life):
                self._poller.unregister(gone)
                del self._clients[gone]
            client.close()
            self._served = None if self._served is client else self._served
        return True

    def _take(self, client: Client, message: bytes, fds: list[int]) -> bool:
        if message == FORGET:
            return False
        try:
            if message != TAKE:
                self._answer(client, self._keeper.handle(message, fds))
            elif self._served not in (None, client):
                # Two balloonds on the same guests would be one too many.
                client.sock.send(BUSY)
            else:
                self._served = client
                self._keeper.hand_out(client.sock)
        except (OSError, UnicodeDecodeError):
            # What it says makes no sense, or it is gone: it hears no more of us either way.
            client.sock.shutdown(socket.SHUT_RDWR)
            self._keeper.close(fds)
        return True

    def _answer(self, client: Client, answer: bytes) -> None:
        """Says what has been lost; what was kept is not answered."""
        try:
            if answer:
                client.sock.send(answer, socket.MSG_DONTWAIT)
        except BlockingIOError:
            pass  # It reads none. The next answer has the count of all.


def main() -> int:
    """Runs the keeper that the arguments describe; returns its exit status."""
    # The terminal's and the service manager's signals are for balloond, which tells us.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # A balloond that starts holds some back, and we have inherited that.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        path = sys.argv[1]
        first = socket.socket(fileno=int(sys.argv[2])) if len(sys.argv) > 2 else None
        listener = listen(path)
        ours = os.lstat(path)
        try:
            Server(listener, first).run()
        finally:
            _unlink(path, ours)
    except OSError as err:
        return EXIT_ERRNO + (err.errno or 0)
    except Exception:
        return EXIT_ERRNO
    return 0


def _unlink(path: str, ours: os.stat_result) -> None:
    """Removes our socket; not that of another keeper, which has come in its place meanwhile."""
    try:
        if os.path.samestat(os.lstat(path), ours):
            os.unlink(path)
    except OSError:
        pass  # It is gone already, or its directory is no longer ours.


if __name__ == "__main__":
    sys.exit(main())
