"""systemd's store: what it hands to a service that it starts, and where it takes more."""

import fcntl
import os
import socket
from collections.abc import Mapping

from balloon_daemon.handover.store import NoStore, SocketStore, Store
from balloon_daemon.linux.apart import LOW
from balloon_daemon.linux.events import OwnedFd

FDSTORE_MAX = 65536
"""As the shipped unit has it (``FileDescriptorStoreMax=``)."""

_FIRST_INHERITED = 3


def take_from_systemd() -> dict[str, OwnedFd]:
    """What systemd kept for us (sd_listen_fds_with_names(3)), by name; empty where it keeps none.

    The variables are removed, so that no child takes them for its own.
    """
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not count.isdigit() or int(count) != len(names):
        return {}
    fds = []
    for fd in range(_FIRST_INHERITED, _FIRST_INHERITED + int(count)):
        # Out of the numbers that a child has which leaves our table (linux/apart.py). None of it
        # is a file whose close waits: a VMM's that is, is never put into the store.
        fds.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, LOW))
        os.close(fd)
    return {name: OwnedFd(fd) for name, fd in zip(names, fds, strict=True)}


def connect_systemd(kept: Mapping[str, OwnedFd]) -> Store:
    """systemd's store of this service; none where no service manager started us."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return NoStore()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        sock.connect("\0" + path[1:] if path.startswith("@") else path)
    except OSError:
        sock.close()
        return NoStore()
    # Since systemd 254; before, what the unit says (FileDescriptorStoreMax=) is not told.
    told = os.environ.pop("FDSTORE", "")
    capacity = int(told) if told.isascii() and told.isdigit() else FDSTORE_MAX
    return SocketStore(sock, dict(kept), capacity=capacity, is_keeper=False)
