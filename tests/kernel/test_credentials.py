"""Which process is at the other end of a Unix socket, and whether it still lives."""

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from balloon_daemon.linux import figures
from balloon_daemon.linux.credentials import living_peer_of, peer_of
from balloon_daemon.linux.figures import MOST_LEFT
from balloon_daemon.vhost_user.connection import Connection
from balloon_daemon.vhost_user.foreign_fds import ForeignFds
from tests.fakes.closes_at_once import closes_at_once
from tests.harness.faults import fault
from tests.harness.fd_room import open_fds


def ended(does: Callable[[], None]) -> int:
    """The number of a process that has done something, and that others may have by now."""
    pid = os.fork()
    if pid == 0:
        try:
            does()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    return pid


def test_connection_that_another_process_made_is_of_nobody_once_that_has_ended(
    tmp_path: Path,
) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as theirs:
        listener.bind(path)
        listener.listen()
        pid = ended(lambda: theirs.connect(path))
        ours, _ = listener.accept()
        connection = Connection(ours, ForeignFds(closes_at_once()))
        assert connection.peer_pid() == pid
        assert not connection.is_of(pid)
        connection.close()


def test_address_at_which_a_process_listened_that_has_ended_is_of_nobody(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(path)
        pid = ended(listener.listen)
        client.connect(path)
        assert (peer_of(client).pid, living_peer_of(client)) == (pid, 0)


@fault("any user puts many locks on a file that balloond reads")
def test_peer_that_cannot_be_proved_while_closes_are_behind_is_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, theirs = socket.socketpair()
    assert living_peer_of(ours) == os.getpid()
    monkeypatch.setattr(figures._CLOSES, "_left", [-1] * MOST_LEFT)
    with monkeypatch.context() as no_process:
        no_process.setattr(figures, "ClosingChild", no_child)
        assert living_peer_of(ours) == 0
    # A child closes what waits as soon as there may be one.
    assert living_peer_of(ours) == os.getpid()
    ours.close()
    theirs.close()


def no_child(*_arguments: object) -> None:
    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def test_process_that_lives_is_known_and_leaves_nothing_open() -> None:
    ours, theirs = socket.socketpair()
    connection = Connection(ours, ForeignFds(closes_at_once()))
    before = open_fds()
    assert connection.is_of(os.getpid())
    assert not connection.is_of(os.getppid())
    assert open_fds() == before
    connection.close()
    theirs.close()
