"""The vhost-user socket: bound by this controller, or taken from another one."""

import errno
import os
import socket
import stat
from pathlib import Path

from balloon_daemon.errors import ConfigError
from balloon_daemon.handover.keeper_start import keeper_at
from balloon_daemon.handover.keys import is_listener
from balloon_daemon.handover.store import Store
from balloon_daemon.linux.directories import others_may_write
from balloon_daemon.linux.socket_holder import holder_of

BACKLOG = 64


class Listener:
    """A bound socket, and its file.

    Args:
        sock: the socket, listening and non-blocking; owned by the listener from here on.
        path: the path to which it is bound.
        kept_as: its name in the store; "": it is not there.
        handed_over: True: a socket unit of systemd's holds it, too, and hands it to the next
            balloond; so its file stays when this balloond ends, and it is not put into the store.
    """

    def __init__(
        self, sock: socket.socket, path: Path, kept_as: str = "", *, handed_over: bool = False
    ) -> None:
        self.sock = sock
        self.kept_as = kept_as
        self.handed_over = handed_over
        self._path = path
        self._file = os.lstat(path)

    def close(self) -> None:
        """Closes the socket and removes its file."""
        self.remove_file()
        self.sock.close()

    def remove_file(self) -> None:
        """Removes the socket's file, unless another socket has replaced it, or it is a socket
        unit's."""
        if self.handed_over:
            return
        try:
            if os.path.samestat(os.lstat(self._path), self._file):
                os.unlink(self._path)
        except OSError:
            # The file is gone already, or this process may not remove it. Leave it: nobody can
            # connect to it once its socket is closed.
            pass


def listen(path: Path, *, looked_for_keeper: bool = False) -> Listener:
    """Binds the vhost-user socket; only its owner may connect (mode 0600).

    A socket of a dead process is replaced. A socket of a living process is not replaced, nor one
    that a keeper process (``handover/fd_keeper.py``) holds for another balloond.

    Args:
        path: the socket's path.
        looked_for_keeper: True: a keeper has been asked already: there is none, or it does not
            answer.

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


def handed_listener(sock: socket.socket, path: Path) -> Listener:
    """Takes a listening socket that systemd hands over; its owner, group and mode are the socket
    unit's.

    Raises:
        ConfigError: its file is gone.
    """
    # Call listen() again in this process: by SO_PEERCRED the kernel tells each client which
    # process called listen(2) last, and until now that is systemd.
    sock.listen(BACKLOG)
    sock.setblocking(False)
    try:
        return Listener(sock, path, handed_over=True)
    except OSError as err:
        sock.close()
        raise ConfigError(f"socket {path}: {err.strerror}; start its socket unit anew") from err


def _why_not(path: Path, err: OSError) -> str:
    """Why no socket could be bound there, and the remedy."""
    match err.errno:
        case None:  # errno None: Python's own check of the length.
            return "the path is too long, 107 bytes are allowed"
        # ENOENT although the directory exists: no file can be created in /proc, for example.
        case errno.ENOENT if os.path.isdir(path.parent):
            return f"no socket can be made in {path.parent}; name another path"
        case errno.ENOENT:
            return f"there is no directory {path.parent}; make it, or name another path"
        case errno.ENOTDIR:
            return f"{path.parent} is no directory; name another path"
        case errno.EADDRINUSE:
            return "another process has just made it; stop that or name another path"
        case errno.EACCES | errno.EPERM | errno.EROFS if not os.path.lexists(path):
            return (
                f"{err.strerror}: this user cannot make a file in {path.parent}; let it write "
                "there, or name another path (--socket)"
            )
        case _:
            return err.strerror or str(err)


def kept_listener(store: Store, path: Path) -> Listener | None:
    """The listening socket that another controller left, if it belongs to this path.

    The socket comes from a trusted store: systemd, or a keeper of our own user. The file at the
    path is checked too, because getsockname(2) gives only the path to which the socket was bound,
    not the file. A socket that does not belong to this path stays in ``store.kept``.
    """
    for name in filter(is_listener, list(store.kept)):
        duplicate = store.kept[name].duplicate()
        try:
            sock = socket.socket(fileno=duplicate.fileno())
        except OSError:  # It is no socket.
            duplicate.close()
            continue
        duplicate.detach()
        try:
            if sock.getsockname() == os.fspath(path) and _is_our_socket(path, os.lstat(path)):
                # Call listen() again in this process: the kernel tells each client, by
                # SO_PEERCRED, which process called listen() last. If that were an earlier
                # balloond, which is dead, a balloond started later would take the socket for
                # abandoned and replace its file.
                sock.listen(BACKLOG)
                sock.setblocking(False)
                listener = Listener(sock, path, name)
                store.kept.pop(name).close()
                return listener
        except OSError:
            pass  # The socket's file has just gone: the caller binds a new socket.
        sock.close()
    return None


def _is_our_socket(path: Path, status: os.stat_result) -> bool:
    """Whether a file is a socket that a process of our user has made.

    An administrator may have changed its owner (chown) or mode (chmod) since. So in a directory
    where no other user may create files, owner and mode are not checked.
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
    holder = holder_of(path)
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
