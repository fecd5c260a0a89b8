"""The process that keeps a daemon's descriptors, as seen from outside."""

import contextlib
import os
import socket
import sys
from pathlib import Path

from balloon_daemon.handover.fd_keeper import FORGET
from balloon_daemon.handover.keeper_start import keeper_path
from tests.harness.daemon import Daemon
from tests.harness.waiting import HANG_S, wait_until


def keeper_pid(daemon: Daemon) -> int:
    """The process that listens on the keeper's socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(str(keeper_path(daemon.config.socket)))
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int.from_bytes(credentials[:4], sys.byteorder)


def file_of(status: os.stat_result) -> tuple[int, int]:
    """A value that differs between files."""
    return status.st_dev, status.st_ino


def kept_files(keeper: int) -> set[tuple[int, int]]:
    """The files that a process has open."""
    found = set()
    for fd in Path(f"/proc/{keeper}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since the listing
            found.add(file_of(fd.stat()))
    return found


def end_keeper(path: Path) -> None:
    """Ends the keeper that a killed daemon left behind, which would otherwise wait for minutes.

    Several daemons of a test may have used the same keeper, so it may be ending already: it then
    resets connections that it has not accepted.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as keeper:
        keeper.settimeout(HANG_S)
        try:
            keeper.connect(os.fspath(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            keeper.send(FORGET)
            assert keeper.recv(1) == b""
    wait_until(lambda: not path.exists(), what="the keeper's socket is gone")
