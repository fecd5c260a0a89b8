"""A small process that holds descriptors for a balloond without systemd, and does nothing else.

Runs by itself (``python -I fd_keeper.py PATH FD``), started by ``balloond --keep-fds`` in a
session of its own, so that a signal to the daemon's process group spares it. It talks to that
balloond through FD, a socket that it inherits, and to later ones through connections at PATH. It
reads no byte of a guest or a VMM: it receives descriptors with names, and sends them out again. It
has no log: its exit status says why it cannot begin. It ends when it receives FORGET, or when no
balloond has been connected for ten minutes. When a VMM ends in that time, the keeper closes all
descriptors of that VM, so that the VM's memory is freed.
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

# This file imports nothing of balloon_daemon, so that the keeper process stays as small as it can
# be.
TAKE, END, FORGET, BUSY = b"FDTAKE=1", b"FDEND=1", b"FDFORGET=1", b"FDBUSY=1"
"""Messages between a keeper and its balloonds only: send all descriptors; all have been sent;
close all descriptors and end; refused, as another balloond is connected."""

ANSWERS = b"FDANSWERS=1"
"""Sent before END: this keeper reports descriptors that it cannot keep, and understands
``FDREPLACES=``. An older keeper, which may still run when a newer balloond connects, does neither.
"""

PATIENCE_S = 600.0
"""How long to wait without a connected balloond: another one comes within seconds, or not at
all."""

EXIT_ERRNO = 100
"""A higher exit status is this number plus an errno (errno(3)); this status itself means a bug or
wrong arguments."""

ENDS_S = 0.5
"""How long VMs whose VMMs have hung up are dropped before a new balloond is looked at, which waits
for 5 s at most: 744 VMs of one user that ended at once took 3 to 6 s. A balloond that gets the
descriptors of the others finds out by itself that these have ended."""

RETRY_S = 0.1
MAX_KEPT = 65536
"""The most descriptors that a keeper holds, if its limit of open files allows; balloond counts
them (``room``)."""

MESSAGE_BYTES = 1 << 16
"""Longer than the names of all descriptors of one guest."""

MAX_HANGING = 512
"""How many threads close descriptors other than memory files at a time; each may hang. Further
descriptors, of any VM, stay open until a close ends, and occupy numbers meanwhile. Few closes hang
here: a VMM's file is nearly always closed last by balloond (61 of 64 were), which lets a user have
1024 descriptors wait for their close."""

STACK_BYTES = 128 << 10
"""The stack of a thread, which only calls close(2); the default is 8 MiB of address space."""

MAX_FREEING = 16
"""How many threads close memory files at a time. These closes always end, and none waits behind a
close that hangs."""

STATE = ".state-"
"""A part of every state's name (``keys``). A guest's state is a memfd that a balloond has made and
no VMM has."""

_CREDENTIALS = struct.Struct("3i")


def listen(path: str) -> socket.socket:
    """Binds the keeper's socket; only its owner may connect.

    Raises:
        OSError: the socket cannot be bound, or the path is in use.
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
    """Whether a path is a socket of this user on which no process listens any more."""
    status = os.lstat(path)
    if not stat.S_ISSOCK(status.st_mode) or status.st_uid != os.geteuid():
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        probe.setblocking(False)
        return probe.connect_ex(path) == errno.ECONNREFUSED


class Keeper:
    """Descriptors by name; the names of one guest's descriptors are equal up to the first dot."""

    def __init__(self) -> None:
        self.kept: dict[str, int] = {}
        self._losses: dict[str, int] = {}
        self._ends: set[str] = set()
        self._dropped, self._hanging = list[int](), set[object]()
        self._memory, self._freeing = list[int](), set[object]()

    def handle(self, message: bytes, fds: list[int]) -> bytes:
        """Handles one message. Returns the answer, empty where there is none.

        A state's message lists the names that it replaces (``FDREPLACES=``, separated by spaces).
        They are dropped once the state is kept, and only if the sender knows how many descriptors
        of that guest were lost (``FDLOSSES=``): otherwise the state may name a descriptor that is
        missing here, and only the state before it can be used. After a loss the sender lists the
        names to be kept instead (``FDKEEPS=``).
        """
        words = dict(line.partition("=")[::2] for line in message.decode("ascii").split("\n"))
        name, answer = words.get("FDNAME", ""), b""
        if words.get("FDSTOREREMOVE") == "1":
            self._drop(name)
        elif words.get("FDSTORE") == "1":
            guest = name.partition(".")[0]
            # A message may come without its descriptor: the kernel drops a descriptor where this
            # process has no free number for it (recvmsg(2), MSG_CTRUNC).
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
        """Sends a duplicate of every descriptor, and keeps them."""
        self._losses.clear()
        for name, fd in self.kept.items():
            rights = array.array("i", [fd])
            sock.sendmsg(
                [f"FDNAME={name}".encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
            )
        sock.send(ANSWERS)
        sock.send(END)

    def ends(self) -> list[int]:
        """The VMMs' connections: when one of them hangs up, its guest has ended."""
        return [self.kept[name] for name in self._ends]

    def end(self, fd: int) -> None:
        """Drops all descriptors of the guest whose VMM has hung up."""
        for end in [name for name in self._ends if self.kept[name] == fd]:
            guest = end.partition(".")[0] + "."
            for name in [name for name in self.kept if name.startswith(guest)]:
                self._drop(name)

    def _drop(self, name: str) -> None:
        self._ends.discard(name)
        if name not in self.kept:
            return
        fd = self.kept.pop(name)
        if STATE in name:
            # No VMM has this file, so this close does not block. A guest whose balloon grows
            # replaces its state 20 times a second, too often to start a thread each time.
            os.close(fd)
        else:
            self.close([fd])

    def close(self, fds: list[int]) -> None:
        """Closes descriptors that VMMs may have sent, in threads: any close may take long.

        The last close of a file may block, for ever, and it is unknown whether another process
        still has the file open. Every close looks at all locks of its file, of which there may be
        millions (fcntl(2)). A thread shares this process's descriptors; threads are safe as this
        process never forks. Memory files are closed by threads of their own, so that no VM's
        memory stays allocated because the closes of other files hang.
        """
        for fd in fds:
            (self._memory if is_memory(fd) else self._dropped).append(fd)
        _start_closing(self._memory, self._freeing, MAX_FREEING)
        _start_closing(self._dropped, self._hanging, MAX_HANGING)


def _start_closing(waiting: list[int], threads: set[object], most: int) -> None:
    """Starts threads that close the waiting descriptors, at most so many at a time."""
    for _ in range(min(len(waiting), most - len(threads))):
        # Count each thread by an object of its own, not by the number of the descriptor that it
        # closes. The kernel may reuse that number as soon as the close has begun, while the thread
        # still hangs in close(2).
        threads.add(mark := object())
        try:
            _thread.start_new_thread(_close_waiting, (waiting, threads, mark))
        except RuntimeError:
            # The kernel allows no further thread: the descriptors stay in ``waiting``, and the
            # next call tries again.
            threads.discard(mark)
            return


def _close_waiting(waiting: list[int], threads: set[object], mark: object) -> None:
    """Runs in a thread: closes the waiting descriptors one after the other."""
    try:
        while waiting:
            try:
                os.close(waiting.pop(0))
            except (OSError, IndexError):
                # OSError: the close failed, but Linux has freed the descriptor's number
                # nevertheless. IndexError: another thread has taken the last descriptor.
                continue
    finally:
        threads.discard(mark)


def is_memory(fd: int) -> bool:
    """Whether a descriptor is a memory file, which no process can watch by epoll.

    Any other file may be in an epoll instance, even an eventfd: its last close waits for that
    instance's lock, which the instance's owner may hold for any time.
    """
    try:
        # Only files of memory (shmem, hugetlbfs) have seals, and the kernel itself answers this
        # question; fstat(2) of a file of FUSE would ask the file system's server, which may never
        # answer.
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        return False
    return True


class Client:
    """A connected balloond.

    Args:
        sock: its connection, owned by the client from here on.
        pid: its process id.

    Raises:
        OSError: the process has ended already.
    """

    def __init__(self, sock: socket.socket, pid: int) -> None:
        self.sock = sock
        # Watch balloond's process too, not only its connection: a child of balloond that hangs in
        # close(2) may keep the connection open after balloond's end.
        self.pidfd = os.pidfd_open(pid)

    def close(self) -> None:
        """Closes its connection and its pidfd."""
        self.sock.close()
        os.close(self.pidfd)

    def receive(self) -> tuple[bytes, list[int]] | None:
        """The next message with its descriptors, empty after a hang-up; None: no message waits."""
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
        listener: the socket to which they connect.
        first: a connection to the balloond that has started this process, if there is one.
    """

    def __init__(self, listener: socket.socket, first: socket.socket | None = None) -> None:
        self._listener = listener
        self._keeper = Keeper()
        self._clients: dict[int, Client] = {}
        """Each client under the numbers of its connection and of its pidfd."""
        self._served: Client | None = None
        self._poller = select.poll()
        self._poller.register(listener, select.POLLIN)
        if first is not None:
            self._admit(first)

    def run(self) -> None:
        """Serves until FORGET arrives, or no balloond has been connected for ``PATIENCE_S``."""
        while self.turn():
            pass

    def turn(self) -> bool:
        """Waits for something to do and does it; False at the end."""
        # Watch the VMMs' connections for hang-ups only while no balloond is connected. A connected
        # balloond notices a VMM's end itself, and tells this keeper process which descriptors to
        # close.
        ends = set[int]() if self._clients else set(self._keeper.ends())
        for fd in ends:
            self._poller.register(fd, 0)
        ready = self._poller.poll(None if self._clients else PATIENCE_S * 1000)
        for fd in ends:
            self._poller.unregister(fd)
        if not ready:
            return False
        until_s, in_time = time.monotonic() + ENDS_S, True
        # Handle hang-ups first and new connections last. A new balloond may connect just when the
        # earlier balloond or a VMM hangs up. Then it must not be refused because of the earlier
        # balloond, and needs no descriptors of the VM that has ended.
        for fd, _ in sorted(ready, key=lambda event: event[0] == self._listener.fileno()):
            if fd in ends:
                if in_time:
                    self._keeper.end(fd)
                    in_time = time.monotonic() < until_s
            elif fd == self._listener.fileno():
                self._accept()
            elif fd in self._clients and not self._hear(self._clients[fd], fd):
                return False
        return True

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            # No descriptor is free for the connection. The connection stays in the queue, so
            # poll() reports it again at once: sleep, to keep this process from a busy loop.
            time.sleep(RETRY_S)
            return
        self._admit(sock)

    def _admit(self, sock: socket.socket) -> None:
        """Accepts a connection's messages from here on, if its process is of this user."""
        peer = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid, uid, _ = _CREDENTIALS.unpack(peer)
        try:
            if uid != os.geteuid():
                raise PermissionError
            client = Client(sock, pid)
        except OSError:
            sock.close()
            return
        for fd in (sock.fileno(), client.pidfd):
            self._clients[fd] = client
            self._poller.register(fd, select.POLLIN)

    def _hear(self, client: Client, fd: int) -> bool:
        """Handles a message, or all messages of a dead client; False: FORGET was received."""
        dead = fd == client.pidfd
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
            for gone in (client.sock.fileno(), client.pidfd):
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
                # This keeper serves another balloond already. Refuse this one, because two
                # balloonds must not serve the same guests.
                client.sock.send(BUSY)
            else:
                self._served = client
                self._keeper.hand_out(client.sock)
        except (OSError, UnicodeDecodeError):
            # The client has hung up, or its message is not ASCII: it gets no more answers.
            client.sock.shutdown(socket.SHUT_RDWR)
            self._keeper.close(fds)
        return True

    def _answer(self, client: Client, answer: bytes) -> None:
        """Sends the answer to a message; the answer is empty unless a descriptor was lost."""
        try:
            if answer:
                client.sock.send(answer, socket.MSG_DONTWAIT)
        except BlockingIOError:
            pass  # balloond does not read its socket. The next answer has the count of all losses.


def main() -> int:
    """Runs the keeper according to the arguments; returns its exit status."""
    # Ignore signals from the terminal and the service manager: they are meant for balloond, which
    # then tells this process to end by sending FORGET.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # Unblock all signals: balloond blocks some while it starts, and this process inherits that.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    # Each message of a controller wakes this process. With SCHED_BATCH (sched(7)) the woken
    # process does not preempt the controller, which is in the middle of serving VMs.
    try:  # noqa: SIM105 - importing contextlib would make this process larger.
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    except OSError:
        pass  # A seccomp filter forbids this system call.
    _thread.stack_size(STACK_BYTES)
    try:
        path = sys.argv[1]
        first = _first(int(sys.argv[2])) if len(sys.argv) > 2 else None
        listener = listen(path)
        bound = os.lstat(path)
        try:
            Server(listener, first).run()
        finally:
            _unlink(path, bound)
    except OSError as err:
        return EXIT_ERRNO + (err.errno or 0)
    except Exception:
        return EXIT_ERRNO
    return 0


def _first(fd: int) -> socket.socket:
    """The socket to the balloond that has started this process. Whatever else that balloond has
    inherited from whoever started it is closed here: others may wait for its end of file."""
    os.chdir("/")
    os.closerange(3, fd)
    os.closerange(fd + 1, 1 << 20)
    return socket.socket(fileno=fd)


def _unlink(path: str, bound: os.stat_result) -> None:
    """Removes the socket's file, unless another keeper has replaced it."""
    try:
        if os.path.samestat(os.lstat(path), bound):
            os.unlink(path)
    except OSError:
        pass  # The file is gone, or this process may no longer write to its directory.


if __name__ == "__main__":
    sys.exit(main())
