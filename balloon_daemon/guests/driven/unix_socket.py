"""Connects to a VMM's Unix socket or says why it cannot, and tells one socket from another."""

import errno
import socket

from balloon_daemon.errors import printable
from balloon_daemon.guests.driven.claims import SocketId
from balloon_daemon.guests.driven.control import ControlError, Fault
from balloon_daemon.guests.driven.lookups import LOOKUPS, Ask
from balloon_daemon.linux.fdless_socket import LEFT, fdless_socket, leads_to

_FAULTS = {
    errno.EACCES: Fault.NO_PERMISSION,
    errno.EPERM: Fault.NO_PERMISSION,
    errno.ENOTSOCK: Fault.NOT_A_SOCKET,
    errno.EPROTOTYPE: Fault.NOT_A_SOCKET,
    errno.EAGAIN: Fault.HANGS,
    # The child answers EDQUOT instead of connecting where too many earlier connections to sockets
    # of this owner, over which descriptors may have come, still wait for their close
    # (``LeftSockets.refused``).
    errno.EDQUOT: Fault.NONSENSE,
    errno.EMFILE: Fault.NO_FDS,
    errno.ENFILE: Fault.NO_FDS,
}


async def connect(
    path: str, kind: socket.SocketKind, identity: SocketId | None = None
) -> socket.socket:
    """Connects to a Unix socket, by a child (``lookups.py``).

    connect(2) of a non-blocking Unix socket never goes on in the background: where the listener's
    backlog is full it fails with EAGAIN. asyncio would treat EAGAIN like EINPROGRESS.

    Args:
        path: the socket's path.
        kind: SOCK_STREAM or SOCK_SEQPACKET.
        identity: the device and inode numbers that the socket must have; None: any.

    Returns:
        The connected socket, non-blocking; it receives no descriptors (``fdless_socket``).

    Raises:
        ControlError: the socket cannot be connected.
    """
    sock = None
    try:
        sock = fdless_socket(kind)
        sock.setblocking(False)
        order = ["connect", path, identity and [*identity], *LEFT.refused()]
        owners: list[object] = []
        await LOOKUPS.ask(order, owners.append, sock.fileno())
        match owners:
            case [int(owner)]:
                leads_to(sock, owner)
    except OSError as err:
        if sock is not None:
            sock.close()
        fault = _FAULTS.get(err.errno or 0, Fault.NOT_THERE)
        raise ControlError(fault, printable(err.strerror or str(err))) from err
    except BaseException:
        if sock is not None:
            sock.close()
        raise
    return sock


async def socket_at(path: str, ask: Ask) -> tuple[str, SocketId | None]:
    """Finds the socket that a path leads to, whether the path is the socket's own, a link or a
    bind mount.

    Returns:
        The path without symbolic links, and the socket's identity; None: no socket is there.

    Raises:
        ControlError: the path is looked up too slowly.
    """
    found: list[tuple[str, SocketId | None]] = []

    def take(part: object) -> None:
        match part:
            case [str(resolved), [int(device), int(inode)]]:
                found.append((resolved, (device, inode)))
            case [str(resolved), None]:
                found.append((resolved, None))

    try:
        await ask(["identify", path], take, -1)
    except OSError:
        return path, None
    return found[0]
