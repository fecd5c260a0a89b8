"""The process that keeps descriptors, by itself."""

import socket
import subprocess
import sys
from pathlib import Path

from balloon_daemon.handover.fd_keeper import FORGET
from tests.vm.waiting import wait_until


def start(path: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-m", "balloon_daemon.handover.fd_keeper", path])


def reach(path: Path) -> socket.socket | None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.connect(str(path))
    except OSError:
        sock.close()
        return None
    return sock


def test_keeper_that_ends_late_leaves_its_successors_socket_alone(tmp_path: Path) -> None:
    path = tmp_path / "keeper"
    first = start(path)
    to_first = wait_until(lambda: reach(path), deadline_s=20, what="the first keeper listens")
    assert to_first is not None
    path.unlink()
    second = start(path)
    to_second = wait_until(lambda: reach(path), deadline_s=20, what="the second keeper listens")
    assert to_second is not None

    to_first.send(FORGET)
    assert first.wait(20) == 0
    again = reach(path)

    assert again is not None
    again.close()
    to_second.send(FORGET)
    assert second.wait(20) == 0
    assert not path.exists()
    to_first.close()
    to_second.close()
