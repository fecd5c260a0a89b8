"""Descriptors whose close may take for ever: a child closes them, and nobody waits for it."""

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from balloon_daemon.linux import closing
from balloon_daemon.linux.closing import (
    MAX_HANGING,
    NAME,
    Closer,
    FdKind,
    close_elsewhere,
    fd_kind,
)
from balloon_daemon.vhost_user.messages import (
    FrontendRequest,
)
from tests.fakes.slow_close import MuteFile, lingering_socket
from tests.vm.waiting import wait_until

SOON_S = 0.5
"""For an answer on a loaded machine; what hangs here hangs for a minute at least."""

Q = FrontendRequest


def is_open(fd: int) -> bool:
    # Neither its file is asked, nor does the question take a number itself.
    try:
        fcntl.fcntl(fd, fcntl.F_GETFD)
    except OSError:
        return False
    return True


def children(name: str = NAME) -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if p.name() == name]


@pytest.fixture
def mute(tmp_path: Path) -> Iterator[MuteFile]:
    try:
        file = MuteFile(tmp_path / "mounted")
    except PermissionError as err:
        pytest.skip(str(err))
    yield file
    file.close()


@pytest.fixture(autouse=True)
def no_child_left() -> Iterator[None]:
    yield
    for child in children():
        child.kill()
        os.waitpid(child.pid, 0)


# --- what it is, without asking it ------------------------------------------------------------


def test_kind_of_a_descriptor_is_the_kernels_word() -> None:
    reading, writing = os.pipe()
    unix, inet = socket.socket(socket.AF_UNIX), socket.socket()
    eventfd, memory = os.eventfd(0), os.memfd_create("anon_inode:[eventfd]")
    file = os.open(__file__, os.O_RDONLY)
    try:
        kinds = [fd_kind(fd) for fd in (eventfd, memory, unix.fileno(), inet.fileno(), reading)]
        assert kinds == [
            FdKind.EVENTFD,
            FdKind.MEMORY,
            FdKind.UNIX_SOCKET,
            FdKind.OTHER,
            FdKind.OTHER,
        ]
        assert fd_kind(file) is FdKind.OTHER
        assert fd_kind(1 << 20) is FdKind.OTHER
    finally:
        for fd in (reading, writing, eventfd, memory, file):
            os.close(fd)
        unix.close()
        inet.close()


# --- closing it -------------------------------------------------------------------------------


def test_socket_that_lingers_is_gone_at_once_and_only_the_child_waits() -> None:
    with lingering_socket() as sock:
        fd = sock.detach()
        began = time.monotonic()
        pid = close_elsewhere([fd])

        wait_until(lambda: not is_open(fd), deadline_s=5, what="the number is free")
        assert time.monotonic() - began < LONG_S
        wait_until(
            lambda: psutil.Process(pid).name() == NAME, deadline_s=5, what="it has its name"
        )
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)


LONG_S = 5.0
"""Far below what a socket lingers for here."""


def test_file_that_never_answers_is_gone_at_once(mute: MuteFile) -> None:
    pid = close_elsewhere([mute.fd])

    wait_until(lambda: mute.is_being_closed, deadline_s=5, what="its server has been asked")
    assert not is_open(mute.fd)
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    mute.fd = -1
    mute.answer()
    assert os.waitpid(pid, 0) == (pid, 0)


def test_child_runs_nothing_else_of_ours() -> None:
    finalized = os.open("/dev/null", os.O_RDONLY)
    dropped = os.open("/dev/null", os.O_RDONLY)

    _, status = os.waitpid(close_elsewhere([dropped]), 0)

    assert status == 0
    assert is_open(finalized)
    assert not is_open(dropped)
    os.close(finalized)


class Later:
    """Stands for an event loop: calls what is planned when the test says so."""

    def __init__(self) -> None:
        self.planned: list[Callable[[], None]] = []
        self.delays: list[float] = []

    def __call__(self, delay_s: float, callback: Callable[[], None]) -> None:
        self.delays.append(delay_s)
        self.planned.append(callback)

    def run(self) -> None:
        (callback,) = self.planned
        self.planned = []
        callback()


def test_closer_reaps_its_children_and_then_rests() -> None:
    later, fd = Later(), os.open("/dev/null", os.O_RDONLY)
    Closer(later).close([fd])
    wait_until(lambda: len(children()) == 1, deadline_s=5, what="its child has its name")
    (child,) = children()
    wait_until(lambda: child.status() == psutil.STATUS_ZOMBIE, deadline_s=5, what="it has ended")

    later.run()

    assert children() == []
    assert later.planned == []
    assert not is_open(fd)


def test_no_process_to_be_had_it_is_closed_later(monkeypatch: pytest.MonkeyPatch) -> None:
    later, fd = Later(), os.open("/dev/null", os.O_RDONLY)

    def refuse() -> int:
        raise OSError(11, "Resource temporarily unavailable")

    with monkeypatch.context() as full:
        full.setattr(closing, "clone_sharing_fds", refuse)
        Closer(later).close([fd])
        later.run()
        assert is_open(fd)
    later.run()

    wait_until(lambda: not is_open(fd), deadline_s=5, what="it is closed")
    assert later.delays[:3] == [0.01, 0.02, 0.04]


def test_many_that_hang_keep_others_waiting_but_no_memory() -> None:
    later = Later()
    closer = Closer(later)
    waits, memory = os.open("/dev/null", os.O_RDONLY), os.memfd_create("guest")
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_HANGING):
            closer.close([stack.enter_context(lingering_socket()).detach()])

        closer.close([waits, memory])

        wait_until(lambda: not is_open(memory), deadline_s=5, what="the memory is let go")
        assert is_open(waits)
    wait_until(lambda: len(children()) >= MAX_HANGING, deadline_s=5, what="all have their names")
    for child in children():
        child.kill()
        wait_until(
            lambda child=child: child.status() == psutil.STATUS_ZOMBIE,  # type: ignore[misc]
            deadline_s=5,
            what="it has ended",
        )
    later.run()
    wait_until(lambda: not is_open(waits), deadline_s=5, what="the other one is closed")
