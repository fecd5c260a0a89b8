"""The process that keeps a daemon's descriptors, from outside."""

import contextlib
import os
import socket
import sys
from pathlib import Path

from balloon_daemon.handover.fd_keeper import FORGET
from balloon_daemon.handover.store import keeper_path
from tests.harness.daemon import Daemon
from tests.harness.waiting import HANG_S, wait_until


def keeper_pid(daemon: Daemon) -> int:
    """Whoever listens on the keeper's socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(str(keeper_path(daemon.config.socket)))
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int.from_bytes(credentials[:4], sys.byteorder)


def file_of(status: os.stat_result) -> tuple[int, int]:
    """What tells one file from any other."""
    return status.st_dev, status.st_ino


def kept_files(keeper: int) -> set[tuple[int, int]]:
    """What a process has open."""
    found = set()
    for fd in Path(f"/proc/{keeper}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # It was closed since.
            found.add(file_of(fd.stat()))
    return found


def end_keeper(path: Path) -> None:
    """Ends the keeper that a killed daemon left behind; it would wait for minutes.

    Several daemons of a test may have had the same one, so it may be on its way out already: it
    resets what it has not accepted by then.
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
