"""What one user's VMMs may take of what all share: descriptors, connections, time, log lines."""

import contextlib
import os
import signal
import socket
import tempfile
from collections.abc import Iterator

import pytest

from balloon_daemon.fake_guest.machine import FakeGuest, run
from balloon_daemon.guests.jailed.closing import MAX_HANGING
from balloon_daemon.guests.jailed.peers import EACH, OF_ALL, OF_ONE_USER, OURS
from balloon_daemon.units import PAGE_SIZE, FrontendAddr, GuestAddr
from balloon_daemon.vhost_user.messages import (
    U64,
    FrontendRequest,
    RegionDescription,
    encode_memory_table,
    encode_request,
)
from tests.harness.daemon import Daemon
from tests.harness.faults import fault
from tests.harness.fd_keeper import keeper_pid
from tests.harness.frozen import Frozen
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.makers import MAXIMUM, MakeGuest, StartDaemon
from tests.harness.other_user import NOBODY, as_user
from tests.harness.short_host import fd_numbers, fds_but_figures
from tests.harness.slow_close import lingering_socket
from tests.harness.waiting import HANG_S, wait_until
from tests.harness.whole_vm import OF_VMM, attach, events, facts, wait_for_device

Q = FrontendRequest
LIMIT = 1000
OF_ONE = int(LIMIT * OF_ONE_USER)
AS_MANY_AS_COME = 250
"""Descriptors with one message: the kernel takes 253."""


@pytest.fixture
def short_daemon(start_daemon: StartDaemon) -> Iterator[Daemon]:
    """A balloond that may have 1,000 descriptors, and whose socket is open to everybody."""
    # Not below pytest's own directory, which each pytest of this user closes to others.
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o711)
        launcher = ("prlimit", f"--nofile={LIMIT}:{LIMIT}")
        daemon = start_daemon(name=f"{directory}/balloond", launcher=launcher)
        os.chmod(daemon.config.socket, 0o666)
        yield daemon


@pytest.fixture(params=["same user", "another user"])
def enemy_uid(request: pytest.FixtureRequest) -> int:
    if request.param == "same user":
        return os.geteuid()
    if os.geteuid() != 0:
        pytest.skip("only root can connect as another user")
    return NOBODY


@contextlib.contextmanager
def connections(daemon: Daemon, uid: int, count: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(count):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            with as_user(uid) if uid != os.geteuid() else contextlib.nullcontext():
                sock.connect(str(daemon.config.socket))
            sock.settimeout(HANG_S)
            made.append(sock)
        yield made


def is_answered(sock: socket.socket) -> bool:
    """Whether it is; otherwise it was closed."""
    try:
        sock.send(encode_request(Q.GET_FEATURES))
        return len(sock.recv(64)) == 20
    except (ConnectionResetError, BrokenPipeError):
        return False


def linger_in(daemon: Daemon, uid: int, stack: contextlib.ExitStack) -> None:
    """Has as many closes hang as may hang for one user, and one more wait."""
    for _ in range(MAX_HANGING + 1):
        sock = stack.enter_context(lingering_socket())
        with connections(daemon, uid, 1) as (enemy,):
            # Had the daemon closed its own first, this process's were the last close, and hung.
            with Frozen(daemon):
                socket.send_fds(enemy, [encode_request(Q.SET_OWNER)], [sock.fileno()])
                os.close(sock.detach())
            # It came with a descriptor that it must not have: closed, and said.
            with contextlib.suppress(ConnectionResetError):
                assert enemy.recv(1) == b""


def rebind(guest: FakeGuest, daemon: Daemon, low_mem: LowMemDir) -> None:
    """The guest's driver is bound anew, for which its VMM sends descriptors; its balloon works."""
    low_mem.set_plenty()
    run([guest], lambda: guest.driver.actual == 0)
    guest.unbind()
    guest.bind()
    low_mem.set_low()
    run([guest], lambda: guest.driver.actual * 4096 == MAXIMUM)


@fault("one user's VMMs take more than three quarters of the descriptors")
def test_user_who_takes_its_share_is_refused_and_no_other(
    short_daemon: Daemon, enemy_uid: int, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    neighbour = attach(make_guest(), short_daemon)
    wait_for_device([neighbour], short_daemon, "vm1")
    with connections(short_daemon, enemy_uid, OF_ONE // EACH + 5) as crowd:
        served = [is_answered(sock) for sock in crowd]
        if enemy_uid != os.geteuid():
            assert served == [True] * (OF_ONE // EACH) + [False] * 5
            late = attach(make_guest(), short_daemon)
            wait_for_device([neighbour, late], short_daemon, f"vm{2 + OF_ONE // EACH}")
        else:
            assert served.count(False) == 6
        refused = facts(short_daemon, "connection-refused")[0]
        assert (refused["uid"], refused["share"]) == (enemy_uid, "users-descriptors")
        rebind(neighbour, short_daemon, low_mem)


@fault("one user makes many closes hang")
def test_sockets_that_linger_and_many_descriptors_cost_no_neighbour_its_balloon(
    short_daemon: Daemon, enemy_uid: int, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    neighbour = attach(make_guest(), short_daemon)
    wait_for_device([neighbour], short_daemon, "vm1")
    before = len(fds_but_figures(short_daemon))
    null = os.open(os.devnull, os.O_RDONLY)
    most = 0
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, null)
        linger_in(short_daemon, enemy_uid, stack)
        for _ in range(20):
            with connections(short_daemon, enemy_uid, 1) as (enemy,):
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    message = encode_request(Q.SET_OWNER)
                    socket.send_fds(enemy, [message], [null] * AS_MANY_AS_COME)
                    assert enemy.recv(1) == b""
                most = max(most, len(fd_numbers(short_daemon.pid)))
        assert any("wait for a close that does not end" in m for m in refusals(short_daemon))
        rebind(neighbour, short_daemon, low_mem)
    assert most < LIMIT * OF_ALL + AS_MANY_AS_COME
    assert {r["vm"] for r in facts(short_daemon, "vmm-hung-up")} <= {
        f"vm{number}" for number in range(2, 100)
    }
    low_mem.set_plenty()
    run([neighbour], lambda: len(fds_but_figures(short_daemon)) <= before)


def test_vm_of_a_user_whose_share_is_taken_is_reset_all_the_same(short_daemon: Daemon) -> None:
    with connections(short_daemon, os.geteuid(), 4) as (neighbour, first, enemy, second):
        set_calls(neighbour)
        for sock in (neighbour, second):
            assert is_answered(sock)
        for number in range(200):
            send_region(first, number)
        taken = 0
        send_region(enemy, taken)
        while is_answered(enemy):
            taken += 1
            send_region(enemy, taken)
        with connections(short_daemon, os.geteuid(), 1) as (enemy,):
            for number in range(taken - 1):
                send_region(enemy, number)
            assert is_answered(enemy)
            # More than what the neighbour gives up for a moment.
            regions = [region_of(number) for number in range(32)]
            fds = [os.memfd_create("guest") for _ in regions]
            table = encode_request(Q.SET_MEM_TABLE, encode_memory_table(regions))
            socket.send_fds(second, [table], fds)
            for fd in fds:
                os.close(fd)
            assert is_answered(second)

            # As QEMU does it at a reboot, without waiting for answers.
            for _ in range(3):
                # All five at once: else the first may be closed before the second comes.
                os.kill(short_daemon.pid, signal.SIGSTOP)
                set_calls(neighbour)
                os.kill(short_daemon.pid, signal.SIGCONT)
                assert is_answered(neighbour)
            assert is_answered(enemy)
            assert is_answered(first)


def set_calls(vmm: socket.socket) -> None:
    """A new call for each of five vrings."""
    for index in range(5):
        call = os.eventfd(0)
        socket.send_fds(vmm, [encode_request(Q.SET_VRING_CALL, U64.pack(index))], [call])
        os.close(call)


def refusals(daemon: Daemon) -> list[str]:
    return events(daemon, "connection-refused", *OF_VMM)


@fault("one user makes many closes hang")
def test_connections_with_sockets_that_linger_in_them_take_up_no_numbers(
    short_daemon: Daemon, enemy_uid: int, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    neighbour = attach(make_guest(), short_daemon)
    wait_for_device([neighbour], short_daemon, "vm1")
    before = len(fds_but_figures(short_daemon))
    with contextlib.ExitStack() as stack:
        lingering = stack.enter_context(lingering_socket())
        linger_in(short_daemon, enemy_uid, stack)
        for _ in range(200):
            with connections(short_daemon, enemy_uid, 1) as (enemy,):
                # Half a header, which nobody takes out of the socket as a whole.
                socket.send_fds(enemy, [b"half"], [lingering.fileno()])
        with connections(short_daemon, os.geteuid(), 1) as (late,):
            assert is_answered(late)
        assert len(fd_numbers(short_daemon.pid)) < before + 100
        rebind(neighbour, short_daemon, low_mem)
    low_mem.set_plenty()
    run([neighbour], lambda: len(fds_but_figures(short_daemon)) <= before)


@fault("store (systemd or keeper) takes nothing")
def test_user_who_connects_over_and_over_while_the_store_takes_nothing_is_refused_at_last(
    start_daemon: StartDaemon, enemy_uid: int
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o711)
        launcher = ("prlimit", f"--nofile={LIMIT}:{LIMIT}")
        daemon = start_daemon("--keep-fds", name=f"{directory}/balloond", launcher=launcher)
        os.chmod(daemon.config.socket, 0o666)
        before, most = len(fd_numbers(daemon.pid)), 0
        keeper = keeper_pid(daemon)
        os.kill(keeper, signal.SIGSTOP)
        try:
            for _ in range(OF_ONE // 5):
                with connections(daemon, enemy_uid, 1) as (enemy,):
                    # A connection that brings more descriptors than its user may have is closed.
                    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                        set_calls(enemy)
                    is_answered(enemy)
                most = max(most, len(fd_numbers(daemon.pid)))
                if refused := facts(daemon, "connection-refused"):
                    break
            if enemy_uid != os.geteuid():
                with connections(daemon, os.geteuid(), 1) as (late,):
                    assert is_answered(late)
        finally:
            os.kill(keeper, signal.SIGCONT)
        assert refused, "none of its connections was refused"
        refusal = refused[0]
        assert (refusal["uid"], refusal["share"]) == (enemy_uid, "users-descriptors")
        assert before + OF_ONE // 2 < most < LIMIT * OF_ALL
        wait_until(lambda: len(fd_numbers(daemon.pid)) < before + EACH, what="the store has all")
        with connections(daemon, enemy_uid, 1) as (enemy,):
            assert is_answered(enemy)


@fault("one user's VMMs take more than three quarters of the descriptors")
def test_memory_regions_beyond_a_users_share_end_that_connection_with_a_line(
    start_daemon: StartDaemon,
) -> None:
    limit = 400
    daemon = start_daemon(launcher=("prlimit", f"--nofile={limit}:{limit}"))
    with connections(daemon, os.geteuid(), 2) as (enemy, neighbour):
        assert is_answered(neighbour)
        taken = 0
        send_region(enemy, taken)
        while is_answered(enemy):
            taken += 1
            send_region(enemy, taken)
        assert taken == (OF_ONE_USER * limit - 2 * OURS) // 2
        assert is_answered(neighbour)
    wait_until(lambda: facts(daemon, *OF_VMM) != [], what="it is said")
    uid = os.geteuid()
    closed = facts(daemon, *OF_VMM)[0]
    assert closed["event"] == "connection-closed"
    assert closed["why"].startswith(f"message: user {uid} has 3")
    assert closed["why"].endswith("descriptors open here, as many as one user may")


def region_of(number: int) -> RegionDescription:
    addr = number * PAGE_SIZE
    return RegionDescription(GuestAddr(addr), PAGE_SIZE, FrontendAddr(addr), 0)


def send_region(vmm: socket.socket, number: int) -> None:
    """Adds a region of memory, of a file of its own."""
    fd = os.memfd_create("guest")
    try:
        os.ftruncate(fd, PAGE_SIZE)
        said = encode_request(Q.ADD_MEM_REG, region_of(number).encode_single())
        socket.send_fds(vmm, [said], [fd])
    finally:
        os.close(fd)
