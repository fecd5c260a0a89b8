"""Reaches the keeper that an earlier balloond left, or starts one."""

import contextlib
import errno
import os
import resource
import select
import socket
import sys
from pathlib import Path

from balloon_daemon.errors import ConfigError, KeeperError
from balloon_daemon.handover import fd_keeper
from balloon_daemon.handover.fd_keeper import ANSWERS, BUSY, END, TAKE
from balloon_daemon.handover.keeper_process import KeeperProcess
from balloon_daemon.handover.store import KEEPER_ENDS_WITHIN_S, SocketStore, end_keeper
from balloon_daemon.linux.credentials import Credentials, peer_of
from balloon_daemon.linux.directories import others_may_write
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.linux.fdless_socket import fdless_socket

KEEPER_WITHIN_S = 5.0
MAX_PATH_BYTES = 107
"""The longest path of a Unix socket (unix(7))."""

_SOMEBODY = {errno.EACCES, errno.EPERM, errno.EPROTOTYPE}
"""Errors of connect(2) that mean: there is a socket, of another user or of another type."""

RESERVED_FDS = 64
"""Descriptors that a keeper needs for itself, and for messages not handled yet."""

_WITHOUT = "run without it, or as a service, whose VMs systemd keeps"


def keeper_path(socket_path: Path) -> Path:
    """The path where the keeper of a balloond with this vhost-user socket listens.

    Raises:
        ConfigError: the path has no last part, such as ``/``.
    """
    if not socket_path.name:
        raise ConfigError(
            f"socket {str(socket_path)!r}: this is no path of a socket; name another"
        )
    return socket_path.with_name(socket_path.name + ".keeper")


def check_keepers_place(socket_path: Path) -> None:
    """Checks that no other user can listen at the keeper's path.

    Raises:
        ConfigError: other users may write there.
    """
    if why := others_may_write(socket_path.parent):
        # Other users may listen at the keeper's path before a keeper does, and the next balloond
        # hands every guest's memory to the process that listens there.
        raise ConfigError(
            f"--keep-fds: {why}; name a socket in a directory of your own (--socket), or "
            f"{_WITHOUT}"
        )


def keeper_at(socket_path: Path) -> Credentials | None:
    """The keeper beside a vhost-user socket, of whatever user; None where no process listens."""
    with fdless_socket(socket.SOCK_SEQPACKET) as sock:
        sock.setblocking(False)
        try:
            sock.connect(os.fspath(keeper_path(socket_path)))
            return peer_of(sock)
        except OSError:
            return None


def reach_keeper(socket_path: Path) -> SocketStore | None:
    """The keeper that an earlier balloond with this socket left; None where there is none.

    Raises:
        KeeperError: the keeper does not answer.
        ConfigError: the keeper serves another balloond, or belongs to another user.
    """
    path = keeper_path(socket_path)
    sock = _reach(path)
    if sock is None:
        return None
    pid = peer_of(sock).pid
    try:
        kept, answers = _take(sock)
    except ConnectionResetError:
        # The keeper process has hung up and is ending, because another balloond has just told it
        # to (FORGET): it counts as no keeper.
        sock.close()
        return None
    except BlockingIOError as err:
        sock.close()
        raise ConfigError(f"--keep-fds: the keeper at {path}: {err}") from err
    except OSError as err:
        sock.close()
        raise KeeperError(f"the keeper at {path} (process {pid}) does not answer: {err}") from err
    return SocketStore(
        sock, kept, capacity=_capacity(pid, answers), is_keeper=True, answers=answers
    )


def start_keeper(socket_path: Path) -> SocketStore:
    """Starts a keeper beside a vhost-user socket, where none runs.

    This process talks to it through a socket that the keeper inherits. The keeper's path is for
    the next balloond only: another process may be listening there already.

    Raises:
        ConfigError: the keeper cannot be started, or does not answer; it is ended then.
    """
    # Use an absolute path, because the keeper process runs in another directory (/).
    path = keeper_path(socket_path).absolute()
    too_much = len(os.fsencode(path)) - MAX_PATH_BYTES
    if too_much > 0:
        most = len(os.fsencode(socket_path.absolute())) - too_much
        raise ConfigError(
            f"--keep-fds: socket {socket_path.absolute()}: the path is too long, {most} bytes are "
            "allowed beside a keeper"
        )
    try:
        sock, keeper_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError as err:
        raise _not_started(err.strerror) from err
    with keeper_end:
        try:
            process = KeeperProcess(os.fspath(path), keeper_end.fileno())
        except OSError as err:
            sock.close()
            raise _not_started(err.strerror) from err
    try:
        kept, answers = _take(sock)
    except BaseException as err:
        sock.close()
        # A keeper that has hung up is about to end.
        status = process.wait(0.0 if isinstance(err, TimeoutError) else KEEPER_ENDS_WITHIN_S)
        end_keeper(process, path)
        if not isinstance(err, OSError):
            raise
        if status is None:
            raise ConfigError(f"--keep-fds: no keeper answers at {path}: {err}") from err
        number = status - fd_keeper.EXIT_ERRNO
        why = os.strerror(number) if number > 0 else f"it ended with status {status}"
        raise _not_started(why, f" at {path}") from err
    return SocketStore(
        sock,
        kept,
        capacity=_capacity(process.pid, answers),
        is_keeper=True,
        answers=answers,
        started=(process, path),
    )


def _capacity(pid: int, answers: bool) -> int:
    """How many descriptors a keeper can keep: its limit of open files, less those it needs."""
    most = fd_keeper.MAX_KEPT if answers else 16384  # MAX_KEPT of an earlier version.
    try:
        limit, _ = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    except OSError:
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(most, limit - RESERVED_FDS)


def _not_started(why: str | None, where: str = "") -> ConfigError:
    return ConfigError(f"--keep-fds: no keeper can be started{where}: {why}; {_WITHOUT}")


def _reach(path: Path) -> socket.socket | None:
    """A connection to the process that listens at a path; None where no process does.

    Raises:
        KeeperError: its queue of connections is full.
        ConfigError: the socket may not be used.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        # Make the socket non-blocking for connect(2), which otherwise waits while the keeper's
        # queue of connections is full. The queue of a keeper that hangs would stay full for ever.
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
            # No process listens there, or the path itself is wrong. Do not report a wrong path
            # here: binding the vhost-user socket in the same directory does.
            return None
        raise ConfigError(
            f"--keep-fds: {path} cannot be used: {err.strerror}; name another socket (--socket)"
        ) from err
    if uid != os.geteuid():
        # Send nothing to another user's process: it would get every guest's memory.
        sock.close()
        raise ConfigError(
            f"--keep-fds: {path} is served by user {uid}; name another socket (--socket)"
        )
    return sock


def _take(sock: socket.socket) -> tuple[dict[str, OwnedFd], bool]:
    """Receives all descriptors of a keeper, and whether the keeper answers (``ANSWERS``)."""
    # Ignore a broken pipe: a keeper that serves another balloond may have sent BUSY and hung up
    # already. BUSY is read below.
    with contextlib.suppress(BrokenPipeError):
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
