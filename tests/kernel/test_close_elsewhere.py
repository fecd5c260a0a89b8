"""Descriptors whose close may take for ever: a child closes them, and nobody waits for it."""

import contextlib
import fcntl
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from balloon_daemon.errors import FrontendError
from balloon_daemon.fake_guest.machine import FakeGuest, GuestSettings
from balloon_daemon.fake_guest.wire import Wire
from balloon_daemon.linux import closing
from balloon_daemon.linux.closing import (
    MAX_HANGING,
    NAME,
    Closer,
    FdKind,
    ForeignFds,
    close_elsewhere,
    fd_kind,
)
from balloon_daemon.units import FrontendAddr, GuestAddr
from balloon_daemon.vhost_user.connection import Connection
from balloon_daemon.vhost_user.messages import (
    U64,
    FrontendRequest,
    RegionDescription,
    encode_memory_table,
    encode_request,
)
from tests.fakes.short_host import cpu_s
from tests.fakes.slow_close import MuteFile, lingering_socket
from tests.kernel.conftest import StartDaemon, wait_for_device
from tests.kernel.test_balloond_guests import attach, events
from tests.vm.daemon import Daemon
from tests.vm.waiting import wait_until

SOON_S = 5.0
"""For an answer on a machine that stalls; what hangs here hangs for a minute at least."""

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


# --- what comes over a connection -------------------------------------------------------------


def conversation() -> tuple[socket.socket, Connection, ForeignFds]:
    vmm, ours = socket.socketpair()
    foreign = ForeignFds(Closer(Later()))
    return vmm, Connection(ours, foreign), foreign


@pytest.mark.parametrize("request_", [Q.SET_VRING_KICK, Q.SET_VRING_CALL, Q.SET_VRING_ERR])
def test_vring_with_what_is_no_eventfd_is_refused_as_it_comes(request_: Q) -> None:
    vmm, connection, _ = conversation()
    reading, writing = os.pipe()
    with vmm, open(reading), open(writing, "w"):
        socket.send_fds(vmm, [encode_request(request_, U64.pack(0))], [reading])

        with pytest.raises(FrontendError, match=f"{request_.name}: its descriptor is no eventfd"):
            connection.receive()
        connection.close()


def test_channel_that_is_no_unix_socket_is_refused_as_it_comes() -> None:
    vmm, connection, _ = conversation()
    with vmm, socket.socket() as inet:
        socket.send_fds(vmm, [encode_request(Q.SET_BACKEND_REQ_FD)], [inet.fileno()])

        with pytest.raises(FrontendError, match="its descriptor is no Unix socket"):
            connection.receive()
        connection.close()


def test_descriptors_beyond_what_a_message_may_have_all_come_to_be_closed_elsewhere() -> None:
    vmm, connection, _ = conversation()
    with vmm, lingering_socket() as sock:
        fine = [os.eventfd(0) for _ in range(60)]
        socket.send_fds(vmm, [encode_request(Q.SET_OWNER)], [*fine, sock.fileno()])
        for fd in fine:
            os.close(fd)
        os.close(sock.detach())
        began = time.monotonic()

        with pytest.raises(FrontendError, match="more than 8 file descriptors"):
            connection.receive()
        connection.close()

    assert time.monotonic() - began < LONG_S


@pytest.mark.parametrize("flags", [0, socket.MSG_OOB], ids=["ordinary", "urgent"])
def test_descriptors_that_wait_in_a_connection_do_not_hold_up_its_end(flags: int) -> None:
    vmm, connection, _ = conversation()
    with vmm, lingering_socket() as sock:
        socket.send_fds(vmm, [b"x"], [sock.fileno()], flags)
        os.close(sock.detach())
        began = time.monotonic()

        connection.receive()
        connection.close()

    assert time.monotonic() - began < LONG_S
    assert connection.fileno() == -1


def test_connection_in_which_no_descriptor_waits_costs_no_process() -> None:
    vmm, connection, _ = conversation()
    with vmm:
        vmm.send(b"x" * 1000)
        before = psutil.Process().children()
        connection.close()

        assert psutil.Process().children() == before
        with pytest.raises(ConnectionResetError):
            vmm.recv(1)


# --- a whole balloond -------------------------------------------------------------------------


def answer_s(wire: Wire) -> float:
    """How long another VM waits for an answer."""
    began = time.monotonic()
    wire.send(encode_request(Q.GET_FEATURES))
    wire.receive()
    return time.monotonic() - began


def longest_answer_s(wire: Wire, until: Callable[[], bool], seconds: float = 10) -> float:
    longest, end = 0.0, time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end
        longest = max(longest, answer_s(wire))
        time.sleep(0.001)
    return longest


def closers(daemon: Daemon) -> int:
    return len([p for p in psutil.Process(daemon.pid).children() if p.name() == NAME])


def refused(daemon: Daemon) -> bool:
    return any("SET_OWNER: came with 1 file descriptors" in m for m in events(daemon, "vmm"))


@pytest.mark.parametrize("options", [[], ["--keep-fds"]], ids=["alone", "with a store"])
def test_vmm_that_sends_a_socket_that_lingers_holds_up_nobody(
    options: list[str], start_daemon: StartDaemon
) -> None:
    daemon = start_daemon(*options)
    other, enemy = (Wire.connect(str(daemon.config.socket)) for _ in range(2))
    answer_s(other)
    with lingering_socket() as sock:
        # Else our own copy could be the last to be closed.
        os.kill(daemon.pid, signal.SIGSTOP)
        enemy.send(encode_request(Q.SET_OWNER), [sock.fileno()])
        os.close(sock.detach())
        os.kill(daemon.pid, signal.SIGCONT)

        assert longest_answer_s(other, lambda: refused(daemon)) < SOON_S
        assert longest_answer_s(other, lambda: closers(daemon) == 1) < SOON_S
    enemy.close()
    other.close()


def test_vmm_that_sends_a_file_that_never_answers_holds_up_nobody(
    daemon: Daemon, mute: MuteFile
) -> None:
    other, enemy = (Wire.connect(str(daemon.config.socket)) for _ in range(2))
    answer_s(other)
    enemy.send(encode_request(Q.SET_OWNER), [mute.fd])

    assert longest_answer_s(other, lambda: mute.is_being_closed) < SOON_S
    assert answer_s(other) < SOON_S
    enemy.close()
    other.close()
    daemon.kill()


@pytest.mark.parametrize("options", [[], ["--keep-fds"]], ids=["alone", "with a store"])
def test_channel_that_is_replaced_takes_what_waits_in_it_elsewhere(
    options: list[str], start_daemon: StartDaemon
) -> None:
    daemon = start_daemon(*options)
    other, enemy = (Wire.connect(str(daemon.config.socket)) for _ in range(2))
    answer_s(other)
    ours, theirs = socket.socketpair()
    with lingering_socket() as sock, ours, theirs:
        socket.send_fds(ours, [b"x"], [sock.fileno()])
        os.close(sock.detach())
        enemy.send(encode_request(Q.SET_BACKEND_REQ_FD), [theirs.fileno()])
        answer_s(enemy)
        theirs.close()
        ours.close()
        again, end = socket.socketpair()
        with again, end:
            enemy.send(encode_request(Q.SET_BACKEND_REQ_FD), [again.fileno()])
            assert answer_s(enemy) < SOON_S
        assert longest_answer_s(other, lambda: closers(daemon) == 1) < SOON_S
    enemy.close()
    other.close()


LARGE_BYTES = 1 << 30


def freeing_s() -> float:
    """What CPU time this machine needs today to free that much; 0.15 to 0.25 s on most."""
    fd = os.memfd_create("measured")
    os.posix_fallocate(fd, 0, LARGE_BYTES)
    before = time.thread_time()
    os.close(fd)
    return time.thread_time() - before


def shmem_bytes() -> int:
    # Not MemFree or MemAvailable: since Linux 6.7 pages just freed can stay in the per-CPU lists,
    # up to an eighth of all memory, and count as neither until the kernel trims those lists.
    return psutil.virtual_memory().shared


@pytest.fixture
def room_for_a_large_guest() -> None:
    if psutil.virtual_memory().available < 3 * LARGE_BYTES:
        pytest.skip("needs 3 GiB of memory")


@pytest.mark.usefixtures("room_for_a_large_guest")
@pytest.mark.parametrize("options", [[], ["--keep-fds"]], ids=["alone", "with a store"])
def test_memory_of_a_vm_that_dies_is_freed_by_others(
    options: list[str], start_daemon: StartDaemon
) -> None:
    daemon = start_daemon(*options)
    guest = attach(FakeGuest(GuestSettings(mem_bytes=LARGE_BYTES)), daemon)
    wait_for_device([guest], daemon, "vm1")
    os.posix_fallocate(guest.ram.fd, 0, LARGE_BYTES)
    before = cpu_s(daemon.pid)
    held = shmem_bytes()

    guest.close()

    wait_until(
        lambda: shmem_bytes() < held - LARGE_BYTES // 2,
        deadline_s=10,
        what="its memory is free",
    )
    assert cpu_s(daemon.pid) - before < freeing_s() / 2


@pytest.mark.usefixtures("room_for_a_large_guest")
def test_memory_that_no_device_serves_is_freed_by_others(daemon: Daemon) -> None:
    vmm = Wire.connect(str(daemon.config.socket))
    answer_s(vmm)
    fd = os.memfd_create("guest")
    os.posix_fallocate(fd, 0, LARGE_BYTES)
    region = RegionDescription(GuestAddr(0), LARGE_BYTES, FrontendAddr(1 << 40), 0)
    vmm.send(encode_request(Q.SET_MEM_TABLE, encode_memory_table([region])), [fd])
    answer_s(vmm)
    os.close(fd)
    before = cpu_s(daemon.pid)
    held = shmem_bytes()

    vmm.close()

    wait_until(
        lambda: shmem_bytes() < held - LARGE_BYTES // 2,
        deadline_s=10,
        what="its memory is free",
    )
    assert cpu_s(daemon.pid) - before < freeing_s() / 2
    assert [r for r in daemon.records() if r["level"] in ("error", "warning")] == []
