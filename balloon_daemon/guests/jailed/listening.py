"""The vhost-user socket: bound by this controller, or kept from another one."""

import errno
import os
import select
import socket
import stat
from pathlib import Path

from balloon_daemon.errors import ConfigError
from balloon_daemon.handover.keeper_start import keeper_at
from balloon_daemon.handover.keys import LISTENER
from balloon_daemon.handover.store import Store
from balloon_daemon.linux.credentials import peer_of
from balloon_daemon.linux.directories import others_may_write

BACKLOG = 64


class Listener:
    """A bound socket, and its file.

    Args:
        sock: the socket, listening and non-blocking; the listener's from here on.
        path: where it is bound.
    """

    def __init__(self, sock: socket.socket, path: Path) -> None:
        self.sock = sock
        self._path = path
        self._file = os.lstat(path)

    def close(self) -> None:
        """Listens no more, and leaves nothing behind."""
        self.remove_file()
        self.sock.close()

    def remove_file(self) -> None:
        """Removes the socket's file, unless another one's has come in its place meanwhile."""
        try:
            if os.path.samestat(os.lstat(self._path), self._file):
                os.unlink(self._path)
        except OSError:
            pass  # Gone, or not ours to remove: nobody can connect any more either way.


def listen(path: Path, *, looked_for_keeper: bool = False) -> Listener:
    """Binds the vhost-user socket; only its owner may connect (mode 0600).

    A socket that a dead process left behind is replaced; one of a living process is not, nor one
    that a keeper holds for another balloond.

    Args:
        path: where.
        looked_for_keeper: what a keeper holds has been asked for: it cannot be had, or is none.

    Raises:
        ConfigError: the path is in use, is no socket of ours, is too long, or cannot be made.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _clear(path, looked_for_keeper=looked_for_keeper)
        umask = os.umask(0o177)
        try:
            sock.bind(os.fspath(path))
        finally:
            os.umask(umask)
        listener = Listener(sock, path)
    except OSError as err:
        sock.close()
        raise ConfigError(f"socket {path}: {_why_not(path, err)}") from err
    except ConfigError:
        sock.close()
        raise
    try:
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as err:
        listener.remove_file()
        sock.close()
        raise ConfigError(f"socket {path}: {err.strerror}") from err
    return listener


def _why_not(path: Path, err: OSError) -> str:
    """Why no socket could be bound there, and what to do about it."""
    match err.errno:
        case None:  # Python's own check.
            return "the path is too long, 107 bytes are allowed"
        case errno.ENOENT if os.path.isdir(path.parent):  # /proc has room for no file.
            return f"no socket can be made in {path.parent}; name another path"
        case errno.ENOENT:
            return f"there is no directory {path.parent}; make it, or name another path"
        case errno.ENOTDIR:
            return f"{path.parent} is no directory; name another path"
        case errno.EADDRINUSE:
            return "another process has just made it; stop that or name another path"
        case _:
            return err.strerror or str(err)


def kept_listener(store: Store, path: Path) -> Listener | None:
    """The listening socket that another controller left, if it is that of this path.

    Who gave it is known: systemd, or a keeper of our own user (``store``). What is at the path is
    looked at, as a socket does not tell which file it is bound to.
    """
    fd = store.kept.pop(LISTENER, None)
    if fd is None:
        return None
    sock = socket.socket(fileno=fd.detach())
    try:
        status = os.lstat(path)
        if sock.getsockname() == os.fspath(path) and _is_our_socket(path, status):
            # Once more: a socket's peers are told who called this last (SO_PEERCRED), and
            # whoever finds that process dead takes the socket for a dead one's.
            sock.listen(BACKLOG)
            sock.setblocking(False)
            return Listener(sock, path)
    except OSError:
        pass  # No socket, or its file went in this very moment: another one is made.
    sock.close()
    return None


def _is_our_socket(path: Path, status: os.stat_result) -> bool:
    """Whether a file is a socket that one of our user has made.

    An administrator may have given it to another user since (chown), or opened it to more (chmod):
    so where nobody else may put a file, whose it is now and its mode say nothing.
    """
    mine = status.st_uid == os.geteuid() or not others_may_write(path.parent)
    return stat.S_ISSOCK(status.st_mode) and mine


def _clear(path: Path, *, looked_for_keeper: bool) -> None:
    """Removes the socket of a dead process."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise ConfigError(
            f"socket {path}: there is something else; name another path or remove it"
        )
    holder = _holder(path)
    if holder:
        raise ConfigError(f"socket {path}: {holder}")
    if not looked_for_keeper and (keeper := keeper_at(path)) is not None:
        raise ConfigError(
            f"socket {path}: process {keeper.pid} keeps it and its VMs for another balloond; "
            f"start with --keep-fds, name another path, or end that process"
        )
    if not _is_our_socket(path, status):
        raise ConfigError(
            f"socket {path}: there is one of user {status.st_uid}; name another path or remove it"
        )
    os.unlink(path)


def _holder(path: Path) -> str:
    """Who serves a socket, and what to do about it; "" where nobody does any more."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            return ""
        except OSError as err:
            # Its backlog is full, or it is a socket of another kind: it lives.
            if err.errno not in (errno.EAGAIN, errno.EPROTOTYPE):
                raise
        else:
            # Of who called listen(2). A process that closes what a VMM sent may hang in the kernel
            # past the death of its balloond, and hold all that this one had open.
            peer = peer_of(probe)
            if peer.uid == os.geteuid() and _has_ended(peer.pid):
                return ""
    return "a running process listens there; stop it or name another path"


def _has_ended(pid: int) -> bool:
    """Whether a process is gone, or waits to be reaped; not what is not known here."""
    if pid == 0:  # It is in another namespace.
        return False
    try:
        life = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    try:
        poller = select.poll()
        poller.register(life, select.POLLIN)
        return bool(poller.poll(0))
    finally:
        os.close(life)
