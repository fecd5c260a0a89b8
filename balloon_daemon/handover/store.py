"""Stores: where descriptors are kept while no controller runs. One language, sd_notify(3)'s.

``FDSTORE=1`` with a name puts descriptors in, ``FDSTOREREMOVE=1`` takes a name out. systemd hands
everything back when it starts the service again; our own ``fd_keeper`` does when it is asked.
A store never blocks the controller: what its socket does not take now waits in line.
"""

import asyncio
import contextlib
import errno
import os
import resource
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from balloon_daemon.errors import ConfigError, KeeperError
from balloon_daemon.handover import fd_keeper
from balloon_daemon.handover.fd_keeper import ANSWERS, BUSY, END, FORGET, TAKE
from balloon_daemon.handover.outbox import RETRY_S, Outbox
from balloon_daemon.handover.room import Room
from balloon_daemon.linux.credentials import Credentials, peer_of
from balloon_daemon.linux.directories import others_may_write
from balloon_daemon.linux.events import OwnedFd

KEEPER_WITHIN_S = 5.0
KEEPER_ENDS_WITHIN_S = 1.0
MAX_PATH_BYTES = 107
"""Of a Unix socket (unix(7))."""

TAKEN_WITHIN_S = 2.0
"""How long a VMM's answer waits for what it says to be kept."""

MANY_WAITING = 64
WAITING_OF_A_GUEST = 8
"""Messages on their way in, of all guests and of one: then what can wait should."""

_SOMEBODY = {errno.EACCES, errno.EPERM, errno.EPROTOTYPE}
"""Somebody is there, but does not let us in or is of another kind."""

KEEPERS_OWN = 64
"""Descriptors of a keeper for itself, and for what it is handed and has not looked at yet."""

_WITHOUT = "run without it, or as a service, whose VMs systemd keeps"


def keeper_path(socket_path: Path) -> Path:
    """Where the keeper of a balloond with this vhost-user socket listens.

    Raises:
        ConfigError: the path has no last part, such as ``/``.
    """
    if not socket_path.name:
        raise ConfigError(
            f"socket {str(socket_path)!r}: this is no path of a socket; name another"
        )
    return socket_path.with_name(socket_path.name + ".keeper")


class HasFileno(Protocol):
    """Anything with a descriptor."""

    def fileno(self) -> int: ...


class Store:
    """A store, once connected.

    Args:
        sock: connected to systemd's notification socket or to a keeper, non-blocking.
        kept: what it held for us, by name; whoever takes a descriptor out of it owns it.
        ours: it is our own keeper.
        answers: it says what it could not keep, and takes out what a state replaces by itself.
        capacity: how many descriptors it keeps at most.
        started: that keeper and its path, where this process has started it.
    """

    def __init__(
        self,
        sock: socket.socket,
        kept: dict[str, OwnedFd],
        *,
        ours: bool,
        capacity: int,
        answers: bool = False,
        started: "tuple[subprocess.Popen[bytes], Path] | None" = None,
    ) -> None:
        self._sock = sock
        self.kept = kept
        self.room = Room(capacity, tuple(kept))
        self._owners: dict[str, Callable[[str, int], None]] = {}
        self._ours, self._answers = ours, answers
        self._started = started
        self._forgotten = self._watched = False
        self._outbox = Outbox(sock, self._lose)
        self._on_lost: Callable[[], None] = lambda: None
        self.lost = False
        """It is gone, and with it all that it kept."""

    def watch(self, lost: Callable[[], None]) -> None:
        """Calls ``lost``, once, when the store is gone; within the running event loop."""
        self._on_lost = lost
        if self._ours:
            self._watched = True
            asyncio.get_running_loop().add_reader(self._sock.fileno(), self._hear)

    def _hear(self) -> None:
        """What a keeper says after its first answer: what it could not keep; or it hangs up."""
        try:
            message = self._sock.recv(fd_keeper.MESSAGE_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        words = dict(line.partition("=")[::2] for line in message.decode().split("\n"))
        name, losses = words.get("FDLOST"), words.get("FDLOSSES", "")
        if name is None:
            self._lose()
            return
        self.room.remove(name)
        owner = self._owners.get(name.partition(".")[0])
        if owner is not None:
            owner(name, int(losses))

    def owned(self, guest: str, lost: "Callable[[str, int], None] | None") -> None:
        """Has ``lost`` called with a name of this guest's that could not be kept, and how many
        were lost of it so far; None: nobody wants to know any more."""
        self._owners.pop(guest, None)
        if lost is not None:
            self._owners[guest] = lost

    def is_of(self, guest: str, user: int | None) -> None:
        """Whose a guest is: users take turns where the store is slow. None: it is gone."""
        self._outbox.is_of(guest, user)

    def _lose(self) -> None:
        if not self.lost:
            self.lost = True
            self._unwatch()
            self._on_lost()

    def _unwatch(self) -> None:
        if self._watched:
            self._watched = False
            asyncio.get_running_loop().remove_reader(self._sock.fileno())

    def has_all_of(self, guest: str) -> bool:
        """Whether all of this guest's has been sent."""
        return not self._outbox.waiting_of(guest)

    @property
    def is_behind(self) -> bool:
        """Whether it has been slow to take what is sent; what can wait should."""
        return len(self._outbox) > MANY_WAITING

    def is_behind_with(self, guest: str) -> bool:
        """Whether much of what this guest has put in is still on its way."""
        return self.is_behind and self._outbox.waiting_of(guest) > WAITING_OF_A_GUEST

    def close_late_by(self, close: Callable[[Sequence[int]], None]) -> None:
        """Has what was late on its way closed so: that may be the last close of a VMM's file."""
        self._outbox.close_late = close

    def put(self, name: str, fd: HasFileno, *, vmm: bool = False) -> None:
        """Keeps a duplicate of the descriptor under a name.

        Args:
            name: ``<guest>.<what>``; without a dot it belongs to no guest.
            fd: the descriptor.
            vmm: the guest's VMM is behind it: should it hang up while no balloond runs, our own
                keeper drops all of that guest. systemd keeps it until the next balloond says so.
        """
        # A duplicate of our own: the caller may close its one before this is sent.
        # FDPOLL=0: systemd drops what hangs up otherwise, and a device's life is told by that.
        words = f"FDSTORE=1\nFDPOLL=0\nFDNAME={name}" + ("\nFDVMM=1" if vmm and self._ours else "")
        self._put(name, words, fd)

    def _put(self, name: str, words: str, fd: HasFileno) -> None:
        duplicate = OwnedFd(os.dup(fd.fileno()))
        self.room.put(name)
        self._outbox.send(words.encode(), (duplicate,), name.partition(".")[0])

    def replace(
        self,
        name: str,
        fd: HasFileno,
        gone: Sequence[str],
        *,
        losses: int = 0,
        stay: Sequence[str] | None = None,
    ) -> None:
        """Keeps a guest's new state, and then nothing more of what it replaces.

        Our keeper does both or neither: it takes nothing out where it could not keep the state, or
        has lost something of this guest that we do not know of yet. systemd answers nothing: it
        closes what it has no room for, or could not receive, and ``BARRIER=1`` would only say that
        it has read so far. So there it rests on what we can know. It takes our datagrams in their
        order, and by our own count (``room``) there is a place for the state; what is left is a
        PID 1 without memory or descriptors.

        Args:
            name: of the state.
            fd: its memory.
            gone: what it replaces.
            losses: how often the keeper has said that it has lost something of this guest.
            stay: all that is to stay, where it is not known what the keeper has; else None.
        """
        for each in gone:
            self.room.remove(each)
        if self._answers:
            list_ = f"FDREPLACES={' '.join(gone)}" if stay is None else f"FDKEEPS={' '.join(stay)}"
            self._put(name, f"FDSTORE=1\nFDNAME={name}\n{list_}\nFDLOSSES={losses}", fd)
        else:
            self.put(name, fd)
            for each in gone:
                self.remove(each)

    def remove(self, name: str) -> None:
        """Keeps nothing under that name any more."""
        self.room.remove(name)
        guest = name.partition(".")[0]
        self._outbox.send(f"FDSTOREREMOVE=1\nFDNAME={name}".encode(), (), guest)

    def forget(self) -> None:
        """Keeps nothing at all any more: an orderly end. systemd sees to that by itself."""
        if self._ours:
            # It ends then, which is no loss to be told of.
            self._on_lost = lambda: None
            self._forgotten = True
            self._outbox.send(FORGET, (), "")

    async def drained(self, guest: str | None = None) -> None:
        """Waits until the store has been sent all that it is to keep; at most for 2 s.

        Args:
            guest: of this guest; None: of all.

        Raises:
            TimeoutError: it takes nothing. Said once; until it takes something again nobody waits.
        """
        deadline = time.monotonic() + TAKEN_WITHIN_S
        outbox = self._outbox
        while not outbox.stalled and (outbox if guest is None else outbox.waiting_of(guest)):
            if time.monotonic() > deadline:
                self._outbox.stalled = True
                raise TimeoutError(f"the store has taken nothing for {TAKEN_WITHIN_S:.0f} s")
            await asyncio.sleep(RETRY_S)

    def close(self) -> None:
        """Sends what waits, as far as it goes, and lets go of the store; it keeps all it has.

        A keeper that was told to forget has ended on return, unless it hangs.
        """
        self._outbox.flush()
        self._unwatch()
        if self._forgotten and not self.lost:
            poller = select.poll()
            poller.register(self._sock, select.POLLIN)
            poller.poll(KEEPER_ENDS_WITHIN_S * 1000)
        self._sock.close()
        if self._forgotten and self._started is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._started[0].wait(KEEPER_ENDS_WITHIN_S)

    def abandon(self) -> None:
        """Lets go of it where nothing has been put in; a keeper that we have started ends."""
        self._sock.close()
        if self._started is not None:
            _end_keeper(*self._started)


def check_keepers_place(socket_path: Path) -> None:
    """Sees to it that nobody else can listen where a keeper is to be met.

    Raises:
        ConfigError: others may write there.
    """
    if why := others_may_write(socket_path.parent):
        # The next balloond hands every guest's memory to whoever it finds there.
        raise ConfigError(
            f"--keep-fds: {why}; name a socket in a directory of your own (--socket), or "
            f"{_WITHOUT}"
        )


def keeper_at(socket_path: Path) -> Credentials | None:
    """The keeper beside a vhost-user socket, of whatever user; None where none listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.setblocking(False)
        try:
            sock.connect(os.fspath(keeper_path(socket_path)))
            return peer_of(sock)
        except OSError:
            return None


def reach_keeper(socket_path: Path) -> Store | None:
    """The keeper that an earlier balloond with this socket left; None where there is none.

    Raises:
        KeeperError: it does not answer.
        ConfigError: it serves another balloond, or is none of ours.
    """
    path = keeper_path(socket_path)
    sock = _reach(path)
    if sock is None:
        return None
    pid = peer_of(sock).pid
    try:
        kept, answers = _take(sock)
    except ConnectionResetError:
        # Its balloond has just told it to end.
        sock.close()
        return None
    except BlockingIOError as err:
        sock.close()
        raise ConfigError(f"--keep-fds: the keeper at {path}: {err}") from err
    except OSError as err:
        sock.close()
        raise KeeperError(f"the keeper at {path} (process {pid}) does not answer: {err}") from err
    sock.setblocking(False)
    return Store(sock, kept, ours=True, capacity=_capacity(pid, answers), answers=answers)


def start_keeper(socket_path: Path) -> Store:
    """Starts a keeper beside a vhost-user socket, where none runs.

    It is spoken to through a socket that it is born with. Its path is for the next balloond: what
    can be met by name, somebody else may have got there first.

    Raises:
        ConfigError: it cannot be started, or does not answer; nothing is left of it then.
    """
    # It runs elsewhere.
    path = keeper_path(socket_path).absolute()
    too_much = len(os.fsencode(path)) - MAX_PATH_BYTES
    if too_much > 0:
        most = len(os.fsencode(socket_path.absolute())) - too_much
        raise ConfigError(
            f"--keep-fds: socket {socket_path.absolute()}: the path is too long, {most} bytes are "
            "allowed beside a keeper"
        )
    try:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError as err:
        raise _not_started(err.strerror) from err
    with theirs:
        fd = theirs.fileno()
        try:
            process = subprocess.Popen(
                # By its file, and alone (-I): what lies in the current directory is not ours to
                # run. Its streams lead nowhere: whoever waits for the end of ours would wait for
                # its end.
                [sys.executable, "-I", fd_keeper.__file__, os.fspath(path), str(fd)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(fd,),
                cwd="/",
                start_new_session=True,
            )
        except OSError as err:
            ours.close()
            raise _not_started(err.strerror) from err
    try:
        kept, answers = _take(ours)
    except BaseException as err:
        ours.close()
        status = process.poll() if isinstance(err, TimeoutError) else _status(process)
        _end_keeper(process, path)
        if not isinstance(err, OSError):
            raise
        if status is None:
            raise ConfigError(f"--keep-fds: no keeper answers at {path}: {err}") from err
        number = status - fd_keeper.EXIT_ERRNO
        why = os.strerror(number) if number > 0 else f"it ended with status {status}"
        raise _not_started(why, f" at {path}") from err
    ours.setblocking(False)
    capacity, started = _capacity(process.pid, answers), (process, path)
    return Store(ours, kept, ours=True, capacity=capacity, answers=answers, started=started)


def _capacity(pid: int, answers: bool) -> int:
    """How many descriptors a keeper can keep: as many as it may have open, but a few."""
    most = fd_keeper.MAX_KEPT if answers else 16384  # An earlier version's.
    try:
        limit, _ = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    except OSError:
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(most, limit - KEEPERS_OWN)


def _not_started(why: str | None, where: str = "") -> ConfigError:
    return ConfigError(f"--keep-fds: no keeper can be started{where}: {why}; {_WITHOUT}")


def _status(process: "subprocess.Popen[bytes]") -> int | None:
    """The exit status of a keeper that has hung up, which is on its way out."""
    try:
        return process.wait(KEEPER_ENDS_WITHIN_S)
    except subprocess.TimeoutExpired:
        return None


def _end_keeper(process: "subprocess.Popen[bytes]", path: Path) -> None:
    """Ends a keeper that we have started and that keeps nothing."""
    process.kill()
    process.wait()
    with contextlib.suppress(OSError):
        if fd_keeper.is_dead_keepers(os.fspath(path)):
            path.unlink()


def _reach(path: Path) -> socket.socket | None:
    """A connection to whoever listens there; None where nobody does.

    Raises:
        KeeperError: its queue is full.
        ConfigError: it is not ours to use.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        # Connecting would wait while its queue is full: it may be one that hangs.
        sock.setblocking(False)
        sock.connect(os.fspath(path))
        sock.setblocking(True)
        uid = peer_of(sock).uid
    except BlockingIOError as err:
        sock.close()
        raise KeeperError(
            f"the keeper at {path} does not answer: it takes no more connections"
        ) from err
    except OSError as err:
        sock.close()
        if err.errno not in _SOMEBODY:
            # Where the path itself is wrong, the vhost-user socket cannot be bound either.
            return None
        raise ConfigError(
            f"--keep-fds: {path} cannot be used: {err.strerror}; name another socket (--socket)"
        ) from err
    if uid != os.geteuid():
        # It would be handed every guest's memory.
        sock.close()
        raise ConfigError(
            f"--keep-fds: {path} is served by user {uid}; name another socket (--socket)"
        )
    return sock


def _take(sock: socket.socket) -> tuple[dict[str, OwnedFd], bool]:
    """Asks a keeper for everything that it holds, and whether it answers."""
    with contextlib.suppress(BrokenPipeError):  # It may have said no already.
        sock.send(TAKE)
    kept: dict[str, OwnedFd] = {}
    answers = False
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    while True:
        if not poller.poll(KEEPER_WITHIN_S * 1000):
            raise TimeoutError(f"nothing for {KEEPER_WITHIN_S:.0f} s")
        message, ancillary, _, _ = sock.recvmsg(256, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
        if message == END:
            return kept, answers
        answers |= message == ANSWERS
        if message == BUSY:
            raise BlockingIOError("a running balloond uses it")
        if not message:
            raise ConnectionResetError("it hung up")
        for _, _, packed in ancillary:
            name = message.decode("ascii", "replace").removeprefix("FDNAME=")
            kept[name] = OwnedFd(int.from_bytes(packed[:4], sys.byteorder))
