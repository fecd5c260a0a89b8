"""Tells whether a process still serves the Unix socket at a path."""

import errno
import os
import select
import socket
from pathlib import Path

from balloon_daemon.linux.credentials import peer_of
from balloon_daemon.linux.fdless_socket import fdless_socket


def holder_of(path: Path) -> str:
    """The process that serves a socket, and the remedy; "" where no process does any more."""
    with fdless_socket(socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            return ""
        except OSError as err:
            # EAGAIN: the socket's backlog is full. EPROTOTYPE: it is a socket of another type.
            # Either error means that a running process serves the socket.
            if err.errno not in (errno.EAGAIN, errno.EPROTOTYPE):
                raise
        else:
            # SO_PEERCRED names the process that called listen(2). If that process has ended,
            # nobody serves the socket: only a child of that process, which hangs in close(2),
            # still keeps the socket open.
            peer = peer_of(probe)
            if peer.uid == os.geteuid() and _has_ended(peer.pid):
                return ""
    return "a running process listens there; stop it or name another path"


def _has_ended(pid: int) -> bool:
    """Whether a process is gone, or waits to be reaped; False where that is unknown."""
    if pid == 0:  # The process is in another PID namespace.
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
