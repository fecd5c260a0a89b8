"""The process that keeps descriptors, by itself."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from balloon_daemon.handover.fd_keeper import END, FORGET, TAKE
from tests.vm.waiting import HANG_S, wait_until


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


def test_balloond_that_is_dead_serves_nobody_though_its_connection_is_open(tmp_path: Path) -> None:
    # A child of it hangs in the kernel, past SIGKILL, and shares its descriptors.
    path = tmp_path / "keeper"
    keeper = start(path)
    first = wait_until(lambda: reach(path), what="the keeper listens")
    assert first is not None
    first.close()
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            sock = reach(path)
            assert sock is not None
            sock.send(TAKE)
            assert sock.recv(100) == END
            if os.fork() == 0:
                os.write(writing, os.getpid().to_bytes(4, "little"))
                signal.pause()
            # What it put into its store last is still to be taken out of its connection.
            socket.send_fds(sock, [b"FDSTORE=1\nFDNAME=vm1.1"], [reading])
        finally:
            os._exit(0)
    holder = int.from_bytes(os.read(reading, 4), "little")
    os.waitpid(pid, 0)
    try:
        second = reach(path)
        assert second is not None
        second.settimeout(HANG_S)
        second.send(TAKE)
        message, fds, _, _ = socket.recv_fds(second, 100, 1)
        assert (message, len(fds)) == (b"FDNAME=vm1.1", 1)
        assert second.recv(100) == END
        second.send(FORGET)
        assert keeper.wait(HANG_S) == 0
        second.close()
    finally:
        os.kill(holder, signal.SIGKILL)
    for fd in (reading, writing, *fds):
        os.close(fd)


def test_keeper_that_ends_late_leaves_its_successors_socket_alone(tmp_path: Path) -> None:
    path = tmp_path / "keeper"
    first = start(path)
    to_first = wait_until(lambda: reach(path), what="the first keeper listens")
    assert to_first is not None
    path.unlink()
    second = start(path)
    to_second = wait_until(lambda: reach(path), what="the second keeper listens")
    assert to_second is not None

    to_first.send(FORGET)
    assert first.wait(HANG_S) == 0
    again = reach(path)

    assert again is not None
    again.close()
    to_second.send(FORGET)
    assert second.wait(HANG_S) == 0
    assert not path.exists()
    to_first.close()
    to_second.close()
