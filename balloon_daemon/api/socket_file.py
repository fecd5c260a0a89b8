"""The API's socket, in a directory that nobody else may write to; and its clients' rights."""

import contextlib
import grp
import os
import socket
import stat
from pathlib import Path

from balloon_daemon.api.messages import Rights
from balloon_daemon.errors import ConfigError
from balloon_daemon.events import ApiListening
from balloon_daemon.linux.credentials import groups_of, peer_of
from balloon_daemon.linux.directories import others_may_write
from balloon_daemon.linux.passed_fds import (
    hang_up,
    read_urgent_in_place,
    refuse_descriptors,
)
from balloon_daemon.linux.socket_holder import holder_of

GROUP = "balloond"
"""The group whose members may read, where there is such a group."""

BACKLOG = 256
"""How many clients may wait to be accepted."""


class ApiSocket:
    """The API's socket, listening and non-blocking.

    Args:
        path: where to bind it. A socket that an ended process has left there is replaced.
        handed: the socket, bound and listening, that systemd hands over; its owner, group and mode
            are the socket unit's, and it stays with systemd when this balloond ends.

    Attributes:
        sock: the socket.
        path: its path.
        group: the group whose members may connect; "": only this process's user and root may.

    Raises:
        ConfigError: the socket cannot be bound there; the error names the path and the remedy.
    """

    def __init__(self, path: Path, handed: socket.socket | None = None) -> None:
        self.path = path
        if why := others_may_write(path.parent):
            raise ConfigError(
                f"API socket {path}: {why}, and could put a socket of theirs there; name a path "
                "in a directory of your own"
            )
        self._is_handed_over = handed is not None
        self.sock = handed or socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._is_closed_to_group = False
        refuse_descriptors(self.sock)
        try:
            self.group = _group_of(path) if handed else _bind(self.sock, path)
            self._file = os.lstat(path)
            self.sock.listen(BACKLOG)
            self.sock.setblocking(False)
        except OSError as err:
            self.sock.close()
            why = err.strerror or str(err)
            raise ConfigError(f"API socket {path}: {why}; name another path (--api)") from err
        except ConfigError:
            self.sock.close()
            raise

    def begun(self) -> ApiListening:
        """The event that says that clients can connect to this socket."""
        return ApiListening(str(self.path), self.group)

    def rights_of(self, client: socket.socket) -> tuple[int, Rights]:
        """A connected client's user, and what it may do.

        Root and this process's user may change something. Members of the file's group may read,
        whoever gave the file to that group. If nobody has changed the file's group, it is the
        group of the process that made the file, and its members get no right. After
        ``close_to_group`` the group's members may not read, even if they connected before.
        """
        uid = peer_of(client).uid
        if uid in (0, os.geteuid()):
            return uid, Rights.CHANGE
        if self._is_closed_to_group:
            return uid, Rights.NOTHING
        try:
            group = os.lstat(self.path).st_gid
        except OSError:
            return uid, Rights.NOTHING
        is_member = group != os.getegid() and group in groups_of(client)
        return uid, Rights.READ if is_member else Rights.NOTHING

    def close_to_group(self) -> None:
        """From now on nobody may ask but this process's user, and root."""
        self._is_closed_to_group = True
        with contextlib.suppress(OSError):  # The file is gone, and nobody connects to it.
            os.chmod(self.path, 0o600)

    def close(self) -> None:
        """Closes the socket and removes its file, unless another socket has replaced it."""
        if self._is_handed_over:
            # systemd has the same socket open: so this close(2) ends no connection in its queue.
            # A shutdown(2) would end the listening for systemd, too.
            self.sock.close()
            return
        try:
            if os.path.samestat(os.lstat(self.path), self._file):
                os.unlink(self.path)
        except OSError:
            pass  # The file is gone already, or this process may not remove it.
        self._end_waiting()

    def _end_waiting(self) -> None:
        """Closes the socket. Its close also closes connections that were not accepted, with the
        descriptors in their queues, and may block for ever on one of these. So each connection is
        accepted first, and stays open if descriptors wait in it. If that cannot be found out, the
        socket stays open too; the process ends soon."""
        try:
            self.sock.shutdown(socket.SHUT_RDWR)  # Nobody connects any more.
            while True:
                client, _ = self.sock.accept()
                client.setblocking(False)
                read_urgent_in_place(client)
                if hang_up(client):
                    client.close()
                else:
                    client.detach()
        except BlockingIOError:
            self.sock.close()
        except OSError:
            self.sock.detach()  # accept(2) has failed, perhaps with EMFILE.


def _bind(sock: socket.socket, path: Path) -> str:
    """Binds the socket; returns the group whose members may connect, or ""."""
    _clear(path)
    # Root's socket gets mode 0660: the shipped unit gives it to a group later, and until then its
    # group is root's. A user's socket gets 0600, because the user's group may be the group of all
    # users.
    umask = os.umask(0o177 if os.geteuid() else 0o117)
    try:
        sock.bind(os.fspath(path))
    finally:
        os.umask(umask)
    return _give_to_group(path)


def _group_of(path: Path) -> str:
    """The group, other than this process's own, whose members may connect; "": there is none."""
    status = os.lstat(path)
    if status.st_gid == os.getegid() or not status.st_mode & stat.S_IWGRP:
        return ""
    try:
        return grp.getgrgid(status.st_gid).gr_name
    except KeyError:
        return str(status.st_gid)


def _clear(path: Path) -> None:
    """Removes the socket of an ended process."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise ConfigError(f"API socket {path}: there is something else; name another path")
    if holder := holder_of(path):
        raise ConfigError(f"API socket {path}: {holder}")
    os.unlink(path)


def _give_to_group(path: Path) -> str:
    """Lets the members of the group ``GROUP`` connect.

    Returns:
        The group's name; "" where there is no such group, or where chown(2) fails. It fails under
        the shipped unit, where balloond has no CAP_CHOWN; there the unit gives the socket to the
        group.
    """
    try:
        os.chown(path, -1, grp.getgrnam(GROUP).gr_gid)
    except (KeyError, OSError):
        return ""
    os.chmod(path, 0o660)
    return GROUP
