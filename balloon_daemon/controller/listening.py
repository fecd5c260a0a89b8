"""The vhost-user socket: bound by this controller, or kept from another one."""

import errno
import os
import socket
import stat
from pathlib import Path

from balloon_daemon.errors import ConfigError
from balloon_daemon.handover.store import Store
from balloon_daemon.linux.events import OwnedFd

LISTENER = "listener"
"""The listening socket's name in the store."""


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


def listen(path: Path) -> Listener:
    """Binds the vhost-user socket; only its owner may connect (mode 0600).

    A socket that a dead process left behind is replaced; one that a living process answers is not.

    Raises:
        ConfigError: the path is in use, is no socket, is too long, or cannot be made.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _clear(path)
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
        sock.listen(64)
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


def kept_listener(store: Store | None, path: Path) -> Listener | None:
    """The listening socket that another controller left, if it is that of this path."""
    fd: OwnedFd | None = None if store is None else store.kept.pop(LISTENER, None)
    if fd is None:
        return None
    sock = socket.socket(fileno=fd.detach())
    try:
        if sock.getsockname() == os.fspath(path) and path.is_socket():
            sock.setblocking(False)
            return Listener(sock, path)
    except OSError:
        pass  # No socket, or its file went in this very moment: another one is made.
    sock.close()
    return None


def _clear(path: Path) -> None:
    """Removes the socket of a dead process."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(
            f"socket {path}: there is something else; name another path or remove it"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError as err:
            # Its backlog is full, or it is a socket of another kind: it lives.
            if err.errno not in (errno.EAGAIN, errno.EPROTOTYPE):
                raise
    raise ConfigError(
        f"socket {path}: a running process listens there; stop it or name another path"
    )
