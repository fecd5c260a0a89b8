"""Connects to a VMM's Unix socket or says why it cannot, and tells one socket from another."""

import errno
import os
import socket
import stat
from pathlib import Path

from balloon_daemon.errors import printable
from balloon_daemon.guests.driven.control import ControlError, Fault

_FAULTS = {
    errno.EACCES: Fault.NO_PERMISSION,
    errno.EPERM: Fault.NO_PERMISSION,
    errno.EPROTOTYPE: Fault.NOT_A_SOCKET,
    errno.EAGAIN: Fault.HANGS,
    errno.EMFILE: Fault.NO_FDS,
    errno.ENFILE: Fault.NO_FDS,
}


def connect(path: str, kind: socket.SocketKind) -> socket.socket:
    """Connects to a Unix socket; never waits.

    connect(2) of a non-blocking Unix socket never goes on in the background: where the listener's
    backlog is full it fails with EAGAIN. asyncio would treat EAGAIN like EINPROGRESS.

    Args:
        path: the socket's path.
        kind: SOCK_STREAM or SOCK_SEQPACKET.

    Returns:
        The connected socket, non-blocking.

    Raises:
        ControlError: the socket cannot be connected.
    """
    sock = None
    try:
        sock = socket.socket(socket.AF_UNIX, kind)
        sock.setblocking(False)
        sock.connect(path)
    except (OSError, ValueError) as err:
        if sock is not None:
            sock.close()
        raise _refusal(path, err) from err
    return sock


def socket_at(path: str) -> tuple[int, int] | None:
    """The device and inode numbers of the socket at a path, whether the path is its own, a link or
    a bind mount; None: no socket is there."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return (status.st_dev, status.st_ino) if stat.S_ISSOCK(status.st_mode) else None


def _refusal(path: str, err: OSError | ValueError) -> ControlError:
    why = err.strerror or str(err) if isinstance(err, OSError) else str(err)
    number = err.errno if isinstance(err, OSError) else None
    fault = _FAULTS.get(number or 0, Fault.NOT_THERE)
    # The kernel answers ECONNREFUSED also where the file is no socket.
    if number == errno.ECONNREFUSED and not _is_socket(path):
        fault = Fault.NOT_A_SOCKET
    if number == errno.ENOENT and (missing := _missing_directory(path)):
        why = f"there is no directory {missing}"
    return ControlError(fault, printable(why))


def _missing_directory(path: str) -> str:
    """The topmost directory of a path that is not there; "" where all are. A service that is shown
    a part of /run alone finds none where the administrator sees one."""
    parents = map(str, reversed(Path(path).parents))
    return next((parent for parent in parents if not os.path.exists(parent)), "")


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return True  # The file has been removed meanwhile; assume that it was a socket.
