"""Descriptors whose close may take for ever: a child closes them, and nobody waits for it."""

import asyncio
import contextlib
import errno
import itertools
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from balloon_daemon.errors import FrontendError
from balloon_daemon.fake_guest.machine import FakeGuest, GuestSettings, run
from balloon_daemon.fake_guest.wire import Wire
from balloon_daemon.guests.jailed import closing
from balloon_daemon.guests.jailed.closing import MAX_HANGING, Closer
from balloon_daemon.handover.keeper_start import keeper_path
from balloon_daemon.linux import closing_child
from balloon_daemon.linux.closing_child import NAME, ClosingChild
from balloon_daemon.linux.fd_kind import FdKind, fd_kind
from balloon_daemon.units import MIB, PAGE_SIZE, FrontendAddr, GuestAddr
from balloon_daemon.vhost_user.backend import Backend
from balloon_daemon.vhost_user.connection import Connection, inspect_memory, right_kind
from balloon_daemon.vhost_user.effects import NotServed
from balloon_daemon.vhost_user.foreign_fds import CLOSED_HERE_S, FdAccount, ForeignFds
from balloon_daemon.vhost_user.memory_table import MemoryTable
from balloon_daemon.vhost_user.messages import (
    MAX_FDS,
    U64,
    FrontendRequest,
    RegionDescription,
    VringState,
    encode_memory_table,
    encode_request,
)
from balloon_daemon.vhost_user.replay import replay
from tests.harness.closers import closers
from tests.harness.daemon import Daemon
from tests.harness.faults import fault
from tests.harness.fd_keeper import file_of, keeper_pid, kept_files
from tests.harness.fd_room import no_fds_from, open_fds
from tests.harness.frozen import Frozen
from tests.harness.jail_watch import is_alive
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.makers import SPEED, VM_MEM_MIB, MakeGuest, StartDaemon
from tests.harness.other_user import OtherUserConfig, limit_processes
from tests.harness.short_host import is_asleep
from tests.harness.slow_close import (
    HeldEpoll,
    MuteFile,
    WatchedFile,
    lingering_socket,
    lock_many,
)
from tests.harness.waiting import HANG_S, wait_until
from tests.harness.whole_vm import (
    OF_VMM,
    attach,
    events,
    facts,
    unread_bytes,
    wait_for_device,
)

Q = FrontendRequest
LONG_S = 20.0
"""Only what hangs takes so long."""


def is_open(fd: int) -> bool:
    """Whether a number is still taken by what the test has opened; its file is not asked.

    A child's pidfd may be the next to get it.
    """
    try:
        return os.readlink(f"/proc/self/fd/{fd}") != "anon_inode:[pidfd]"
    except FileNotFoundError:
        return False


def children(name: str = NAME) -> list[psutil.Process]:
    """Ours of that name; of any name where it is empty."""
    return [p for p in psutil.Process().children() if p.name() == name or not name]


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
    epoll = select.epoll()
    try:
        kinds = [fd_kind(fd) for fd in (eventfd, memory, unix.fileno(), inet.fileno(), reading)]
        assert kinds == [
            FdKind.EVENTFD,
            FdKind.MEMORY,
            FdKind.UNIX_SOCKET,
            FdKind.INET_SOCKET,
            FdKind.PIPE,
        ]
        assert fd_kind(file) is FdKind.OTHER
        # A kernel's own too, but its last close takes long where it watches many files.
        assert fd_kind(epoll.fileno()) is FdKind.OTHER
        assert fd_kind(1 << 20) is FdKind.OTHER
    finally:
        for fd in (reading, writing, eventfd, memory, file):
            os.close(fd)
        epoll.close()
        unix.close()
        inet.close()


# --- closing it -------------------------------------------------------------------------------


def test_socket_that_lingers_is_gone_at_once_and_only_the_child_waits() -> None:
    with lingering_socket() as sock:
        fd = sock.detach()
        child = ClosingChild([fd])

        wait_until(lambda: not is_open(fd), what="the number is free")
        wait_until(lambda: psutil.Process(child.pid).name() == NAME, what="it has its name")
        assert not child.is_done()
    child.end()


def test_file_that_never_answers_is_gone_at_once(mute: MuteFile) -> None:
    child = ClosingChild([mute.fd])

    wait_until(lambda: mute.is_being_closed, what="its server has been asked")
    assert not is_open(mute.fd)
    assert not child.is_done()
    mute.fd = -1
    mute.answer()
    wait_until(child.is_done, what="all is closed")
    child.end()


def test_child_runs_nothing_else_of_ours() -> None:
    finalized = os.open("/dev/null", os.O_RDONLY)
    dropped = os.open("/dev/null", os.O_RDONLY)

    child = ClosingChild([dropped])
    wait_until(child.is_done, what="it is closed")
    child.end()

    assert is_open(finalized)
    assert not is_open(dropped)
    os.close(finalized)


def test_child_that_is_done_closes_more() -> None:
    child = ClosingChild([])
    wait_until(child.is_done, what="it has its life before it")
    for _ in range(3):
        fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(500)]
        child.close(fds)
        wait_until(child.is_done, what="all is closed")
        assert [fd for fd in fds if is_open(fd)] == []
    child.end()
    assert not Path(f"/proc/{child.pid}").exists()


def test_child_that_was_killed_is_done_and_gives_no_more() -> None:
    with lingering_socket() as sock:
        child = ClosingChild([sock.detach()])
        os.kill(child.pid, signal.SIGKILL)

        wait_until(child.is_done, what="it is reaped")
    assert not child.takes_more


def test_no_descriptor_left_the_child_closes_once_and_ends() -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    with no_fds_from(fd):
        child = ClosingChild([fd])
        assert not child.takes_more
        wait_until(child.is_done, what="it has closed it and ended")
    assert not is_open(fd)


Loop = asyncio.AbstractEventLoop


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def turn_until(loop: Loop, condition: Callable[[], bool], what: str) -> None:
    """Lets the loop hear its children and its timers, turn by turn."""

    def turned() -> bool:
        loop.call_soon(loop.stop)
        loop.run_forever()
        return condition()

    wait_until(turned, what=what)


def test_closer_uses_a_child_again_ends_it_and_then_rests(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closing, "IDLE_S", 0.05)
    before = len(open_fds())
    closer, account = Closer(loop), FdAccount()
    pids = set()
    for _ in range(5):
        fd = os.open("/dev/null", os.O_RDONLY)
        close_dropped(peer(closer, account), fd)
        turn_until(loop, lambda: account.waiting == 0, "it has said that it is closed")
        assert not is_open(fd)
        pids |= {child.pid for child in children("")}
    assert len(pids) == 1

    turn_until(loop, lambda: children("") == [], "the child is ended")
    assert len(open_fds()) == before


def test_idle_child_that_was_killed_is_reaped_and_another_closes(loop: Loop) -> None:
    closer, account = Closer(loop), FdAccount()
    close_dropped(peer(closer, account), os.open("/dev/null", os.O_RDONLY))
    turn_until(loop, lambda: account.waiting == 0, "it is closed")
    (idle,) = children("")
    idle.kill()
    turn_until(loop, lambda: children("") == [], "the child is reaped")

    close_dropped(peer(closer, account), os.open("/dev/null", os.O_RDONLY))

    turn_until(loop, lambda: account.waiting == 0, "it is closed")
    (another,) = children("")
    assert another.pid != idle.pid


def test_child_for_which_there_was_no_descriptor_is_reaped(loop: Loop) -> None:
    closer, account = Closer(loop), FdAccount()
    fd = os.open("/dev/null", os.O_RDONLY)
    with no_fds_from(fd):
        close_dropped(peer(closer, account), fd)
        turn_until(loop, lambda: account.waiting == 0, "it is closed")
    assert not is_open(fd)
    assert children("") == []


FOUND_DONE = """
import asyncio, os, sys
from balloon_daemon.guests.jailed import closing
from balloon_daemon.vhost_user.foreign_fds import FdAccount, ForeignFds
from tests.harness.fd_room import no_fds_from

async def main():
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: print("failed:", context["exception"]))
    closer, account = closing.Closer(loop), FdAccount()
    peer = ForeignFds(closer)
    peer.charge_to(account)
    fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(2)]
    # Not even the number that the first child frees may be used: that child can be so quick that
    # its pidfd would get this number.
    with no_fds_from(fds[0]):
        peer.own(fds[0]).close()
        peer.close_dropped()
        # It is this process's only child. It has closed its descriptor and ended, which nobody has
        # noticed yet.
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
        peer.own(fds[1]).close()
        peer.close_dropped()
        # This timer is due after that of the first child: the loop runs timers in order.
        await asyncio.sleep(closing.BLIND_LOOK_S)
        while account.waiting:
            await asyncio.sleep(closing.BLIND_LOOK_S)
    print("closed")

asyncio.run(main())
"""


def test_child_without_a_descriptor_that_another_order_finds_done_is_finished_once() -> None:
    # A process of its own: it waits for the end of any child, and has no other. Should it hang it
    # is killed, and the kernel ends its children with it (PR_SET_PDEATHSIG).
    done = subprocess.run(
        [sys.executable, "-c", FOUND_DONE], capture_output=True, text=True, timeout=HANG_S
    )

    assert (done.stdout, done.stderr) == ("closed\n", "")


@fault("no process left to close a VMM's descriptors in")
def test_no_process_to_be_had_it_is_closed_later(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    fd, tries_at_s = os.open("/dev/null", os.O_RDONLY), []

    def refuse(_child: Callable[[], None]) -> int:
        tries_at_s.append(loop.time())
        raise OSError(11, "Resource temporarily unavailable")

    with monkeypatch.context() as full:
        full.setattr(closing_child, "fork_sharing_fds", refuse)
        Closer(loop).close([fd])
        turn_until(loop, lambda: len(tries_at_s) == 4, "it was tried again and again")
        assert is_open(fd)

    turn_until(loop, lambda: not is_open(fd), "it is closed")
    waits_s = [later - before for before, later in itertools.pairwise(tries_at_s)]
    # Less a tick of the loop's clock.
    assert all(wait > least for wait, least in zip(waits_s, (0.009, 0.019, 0.039), strict=True))


def peer(closer: Closer, account: FdAccount) -> ForeignFds:
    """One of a user's connections."""
    foreign = ForeignFds(closer)
    foreign.charge_to(account)
    return foreign


def close_dropped(foreign: ForeignFds, *fds: int) -> None:
    for fd in fds:
        foreign.own(fd).close()
    foreign.close_dropped()


def test_what_a_store_has_too_is_closed_here_at_once_and_its_copies_with_it(loop: Loop) -> None:
    account = FdAccount()
    foreign = peer(Closer(loop), account)
    owned, other = foreign.own(os.eventfd(0)), foreign.own(os.eventfd(0))
    copy = owned.duplicate()
    here = [owned.fileno(), copy.fileno()]
    with foreign.closed_here():
        owned.close()
        copy.close()
        assert [is_open(fd) for fd in here] == [False, False]
    # After the block, descriptors are closed only by ``close_dropped`` again.
    later = other.fileno()
    other.close()
    assert is_open(later)
    assert (account.held, account.waiting) == (0, 1)
    foreign.close_dropped()


@fault("sends a file with many locks")
def test_closes_that_take_long_are_done_here_only_for_a_moment(loop: Loop) -> None:
    file = os.memfd_create("guest")
    lock_many(file, 50_000)
    foreign = peer(Closer(loop), FdAccount())
    fds = [os.dup(file) for _ in range(500)]
    os.close(file)
    # As far as the account goes: this process may lose the processor at any time.
    while foreign.account.closed_here_s < CLOSED_HERE_S and len(fds) > 1:
        with foreign.closed_here():
            foreign.drop(fds.pop())
    left = foreign.own(fds[0])
    with foreign.closed_here():
        left.close()
    assert is_open(fds[0])
    foreign.close_dropped()
    for fd in fds[1:]:
        foreign.drop(fd)
    foreign.close_dropped()


@contextlib.contextmanager
def hanging_closes(closer: Closer, account: FdAccount) -> Iterator[None]:
    """As many of one user's as may hang at a time."""
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_HANGING):
            close_dropped(peer(closer, account), stack.enter_context(lingering_socket()).detach())
        yield


@fault("sends a descriptor whose close lingers or never ends")
def test_many_that_hang_keep_that_users_others_waiting_but_no_memory(loop: Loop) -> None:
    closer, account = Closer(loop), FdAccount()
    waits, memory = os.open("/dev/null", os.O_RDONLY), os.memfd_create("guest")
    with hanging_closes(closer, account):
        close_dropped(peer(closer, account), waits, memory)

        wait_until(lambda: not is_open(memory), what="the memory is let go")
        assert is_open(waits)
        assert account.waiting == MAX_HANGING + 2
    turn_until(loop, lambda: account.debt == 0, "nothing is left to be closed")
    assert not is_open(waits)
    assert account.held == 0


@fault("one user makes many closes hang")
def test_many_of_one_user_that_hang_keep_no_other_user_waiting(loop: Loop) -> None:
    closer, enemy = Closer(loop), FdAccount()
    other = os.open("/dev/null", os.O_RDONLY)
    with hanging_closes(closer, enemy):
        close_dropped(peer(closer, FdAccount()), other)

        wait_until(lambda: not is_open(other), what="another user's is closed")


@fault("one user makes many closes hang")
def test_sockets_that_wait_for_their_close_take_up_no_numbers(loop: Loop) -> None:
    closer, account = Closer(loop), FdAccount()
    waiting = [socket.socket() for _ in range(600)]
    numbers = [each.fileno() for each in waiting]
    with hanging_closes(closer, account):
        for each in waiting:
            close_dropped(peer(closer, account), each.detach())

        assert len([fd for fd in numbers if is_open(fd)]) <= 3
        assert account.waiting <= MAX_HANGING + 3
    turn_until(loop, lambda: account.debt == 0, "nothing is left to be closed")
    assert account.held == 0


@fault("sends a file with many locks")
def test_numbers_of_what_waits_are_closed_here_only_for_a_moment(loop: Loop) -> None:
    closer, account = Closer(loop), FdAccount()
    reader, writer = os.pipe()
    lock_many(reader, 50_000)
    os.close(writer)
    waiting = [os.dup(reader) for _ in range(200)]
    with hanging_closes(closer, account):
        close_dropped(peer(closer, account), *waiting)

        # At the moment's end the rest is left: 200 such closes take some 2 s.
        assert account.closed_here_s >= CLOSED_HERE_S
        assert is_open(waiting[-1])
    turn_until(loop, lambda: account.debt == 0, "nothing is left to be closed")
    assert not is_open(waiting[-1])
    os.close(reader)


def test_sockets_that_may_not_be_under_way_wait_with_their_numbers(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    closer, account = Closer(loop), FdAccount()
    waits = socket.socket().detach()

    def refuse(*_arguments: object) -> None:
        raise OSError(errno.ETOOMANYREFS, "Too many references: cannot splice")

    with hanging_closes(closer, account):
        with monkeypatch.context() as full:
            full.setattr(socket, "send_fds", refuse)
            close_dropped(peer(closer, account), waits)
        assert is_open(waits)
    turn_until(loop, lambda: account.debt == 0, "nothing is left to be closed")
    assert not is_open(waits)


# --- what comes over a connection -------------------------------------------------------------


def conversation(loop: Loop) -> tuple[socket.socket, Connection]:
    vmm, ours = socket.socketpair()
    return vmm, Connection(ours, ForeignFds(Closer(loop)))


REGION = RegionDescription(GuestAddr(0), 1 << 20, FrontendAddr(1 << 40), 0)
USES = {
    "kick": (Q.SET_VRING_KICK, U64.pack(0)),
    "call": (Q.SET_VRING_CALL, U64.pack(0)),
    "err": (Q.SET_VRING_ERR, U64.pack(0)),
    "channel": (Q.SET_BACKEND_REQ_FD, b""),
    "memory": (Q.ADD_MEM_REG, REGION.encode_single()),
    "memory table": (Q.SET_MEM_TABLE, encode_memory_table([REGION])),
}
"""What a VMM may send a descriptor for."""


@fault("kick, call or err that is no eventfd; channel that is no Unix socket")
@pytest.mark.parametrize("use", USES)
def test_descriptor_that_is_of_no_use_is_let_go_as_it_comes_and_nothing_is_kept_of_it(
    use: str, loop: Loop
) -> None:
    request, payload = USES[use]
    vmm, connection = conversation(loop)
    backend = Backend(MemoryTable(inspect_memory), right_kind=right_kind)
    with vmm, socket.socket() as inet:
        socket.send_fds(vmm, [encode_request(request, payload)], [inet.fileno()])
        received = connection.receive()
        assert received is not None
        (theirs,) = (fd.fileno() for fd in received.fds)

        effects = backend.handle(received.message, received.fds)
        connection.close_dropped()

        wait_until(lambda: not is_open(theirs), what="its number is free")
        assert [fd for _, fds in replay(backend) for fd in fds] == []
        whys = [effect.why for effect in effects if isinstance(effect, NotServed)]
        assert whys == NOT_SERVED[use]
        connection.close()


NOT_SERVED = {
    "kick": ["SET_VRING_KICK: vring 0's descriptor is no eventfd"],
    "call": ["SET_VRING_CALL: vring 0's descriptor is no eventfd"],
    "err": ["SET_VRING_ERR: vring 0's descriptor is no eventfd"],
    "channel": [
        "SET_BACKEND_REQ_FD: its descriptor is no Unix socket: no target can be signalled"
    ],
    "memory": [],
    "memory table": [],
}
"""What is said at once; of memory it is said when there is a driver that may give some."""


def test_descriptors_beyond_what_a_message_may_have_all_come_to_be_closed_elsewhere(
    loop: Loop,
) -> None:
    vmm, connection = conversation(loop)
    with vmm, lingering_socket() as sock:
        fine = [os.eventfd(0) for _ in range(60)]
        socket.send_fds(vmm, [encode_request(Q.SET_OWNER)], [*fine, sock.fileno()])
        for fd in fine:
            os.close(fd)
        os.close(sock.detach())
        began = time.monotonic()

        with pytest.raises(FrontendError, match=f"more than {MAX_FDS} file descriptors"):
            connection.receive()
        connection.close()

    assert time.monotonic() - began < HANG_S


@fault("sends a descriptor whose close lingers or never ends")
@pytest.mark.parametrize("flags", [0, socket.MSG_OOB], ids=["ordinary", "urgent"])
def test_descriptors_that_wait_in_a_connection_do_not_hold_up_its_end(
    flags: int, loop: Loop
) -> None:
    vmm, connection = conversation(loop)
    with vmm, lingering_socket() as sock:
        socket.send_fds(vmm, [b"x"], [sock.fileno()], flags)
        os.close(sock.detach())
        began = time.monotonic()

        connection.receive()
        connection.close()

    assert time.monotonic() - began < HANG_S
    assert connection.fileno() == -1


def test_connection_in_which_no_descriptor_waits_costs_no_process(loop: Loop) -> None:
    vmm, connection = conversation(loop)
    with vmm:
        vmm.send(b"x" * 1000)
        before = psutil.Process().children()
        connection.close()

        assert psutil.Process().children() == before
        with pytest.raises(ConnectionResetError):
            vmm.recv(1)


# --- a whole balloond -------------------------------------------------------------------------


def answer(wire: Wire) -> None:
    """Waits for an answer, less long than anything hangs here."""
    wire.send(encode_request(Q.GET_FEATURES))
    wire.receive()


def answer_until(wire: Wire, condition: Callable[[], bool]) -> None:
    """Another VM is answered over and over, before a condition holds and once more after that."""

    def answered() -> bool:
        answer(wire)
        return condition()

    wait_until(answered, what="what hangs is in a child's hands")
    answer(wire)


def hanging(daemon: Daemon) -> int:
    """Closes that hang: in a child of the controller, or in a thread of its keeper, if it has one.

    Whoever closes it last is the one.
    """
    found = len(closers(daemon))
    if keeper_path(daemon.config.socket).exists():
        found += psutil.Process(keeper_pid(daemon)).num_threads() - 1
    return found


def refused(daemon: Daemon) -> bool:
    return any("SET_OWNER: came with 1 file descriptors" in m for m in events(daemon, *OF_VMM))


@fault("sends a descriptor whose close lingers or never ends")
@pytest.mark.parametrize("options", [[], ["--keep-fds"]], ids=["alone", "with a store"])
def test_vmm_that_sends_a_socket_that_lingers_holds_up_nobody(
    options: list[str], start_daemon: StartDaemon
) -> None:
    daemon = start_daemon(*options)
    other, enemy = (Wire.connect(str(daemon.config.socket)) for _ in range(2))
    answer(other)
    with lingering_socket() as sock:
        # Else our own copy could be the last to be closed.
        os.kill(daemon.pid, signal.SIGSTOP)
        enemy.send(encode_request(Q.SET_OWNER), [sock.fileno()])
        os.close(sock.detach())
        os.kill(daemon.pid, signal.SIGCONT)

        answer_until(other, lambda: refused(daemon))
        answer_until(other, lambda: hanging(daemon) == 1)
    enemy.close()
    other.close()


@fault("sends a descriptor whose close lingers or never ends")
def test_vmm_that_sends_a_file_that_never_answers_holds_up_nobody(
    daemon: Daemon, mute: MuteFile
) -> None:
    other, enemy = (Wire.connect(str(daemon.config.socket)) for _ in range(2))
    answer(other)
    enemy.send(encode_request(Q.SET_OWNER), [mute.fd])

    answer_until(other, lambda: mute.is_being_closed)
    enemy.close()
    other.close()
    daemon.kill()


@pytest.fixture(params=[[], ["--keep-fds"]], ids=["alone", "with a store"])
def any_daemon(request: pytest.FixtureRequest, start_daemon: StartDaemon) -> Daemon:
    return start_daemon(*request.param)


@fault("sends a descriptor whose close lingers or never ends")
@pytest.mark.parametrize("use", USES)
def test_vmm_that_sends_a_socket_that_lingers_for_any_use_is_answered_and_nobody_waits(
    use: str, any_daemon: Daemon
) -> None:
    other, enemy = (Wire.connect(str(any_daemon.config.socket)) for _ in range(2))
    answer(other)
    with lingering_socket() as sock:
        os.kill(any_daemon.pid, signal.SIGSTOP)
        enemy.send(encode_request(*USES[use]), [sock.fileno()])
        os.close(sock.detach())
        os.kill(any_daemon.pid, signal.SIGCONT)

        answer_until(other, lambda: hanging(any_daemon) == 1)
        answer(enemy)
        enemy.close()
        answer(other)
    other.close()


@fault("sends a descriptor whose close lingers or never ends")
@pytest.mark.parametrize("use", USES)
def test_vmm_that_sends_a_file_that_never_answers_for_any_use_is_answered_and_nobody_waits(
    use: str, any_daemon: Daemon, mute: MuteFile
) -> None:
    # Each close of it waits, not only the last: whoever keeps one, or a store for it, would.
    other, enemy = (Wire.connect(str(any_daemon.config.socket)) for _ in range(2))
    answer(other)
    enemy.send(encode_request(*USES[use]), [mute.fd])

    answer_until(other, lambda: mute.is_being_closed)
    answer(enemy)
    enemy.close()
    answer(other)
    other.close()


@pytest.mark.parametrize("use", USES)
def test_vmm_that_sends_an_epoll_instance_whose_lock_it_holds_holds_up_nobody(
    use: str, any_daemon: Daemon
) -> None:
    try:
        held = HeldEpoll()
    except PermissionError as err:
        pytest.skip(str(err))
    other, enemy = (
        Wire.connect(str(any_daemon.config.socket), timeout_s=LONG_S) for _ in range(2)
    )
    answer(other)
    try:
        enemy.send(encode_request(*USES[use]), [held.fd])
        answer(enemy)
        answer(other)
    finally:
        # Else nobody could end balloond.
        held.end()
    enemy.close()
    other.close()


@fault("sends an eventfd or a pipe that somebody watches by epoll")
@pytest.mark.parametrize("kind", ["eventfd", "pipe"])
@pytest.mark.parametrize("options", [[], ["--keep-fds"]], ids=["alone", "with a store"])
def test_file_whose_last_close_waits_for_whoever_watches_it_holds_up_nobody(
    options: list[str], kind: str, start_daemon: StartDaemon
) -> None:
    # epoll_wait(2) holds the lock of its instance while it writes events to memory; the last close
    # of what is watched wants that lock. Here the memory is a page that never comes.
    try:
        watch = WatchedFile(kind)
    except PermissionError as err:
        pytest.skip(str(err))
    daemon = start_daemon(*options)
    other, enemy = (Wire.connect(str(daemon.config.socket)) for _ in range(2))
    answer(other)
    # Else our own copy could be the last to be closed.
    os.kill(daemon.pid, signal.SIGSTOP)
    enemy.send(encode_request(Q.SET_VRING_ERR, U64.pack(0)), [watch.fd])
    watch.leave_the_last_close_to_others()
    os.kill(daemon.pid, signal.SIGCONT)
    answer(enemy)
    enemy.close()

    for _ in range(50):
        answer(other)
    watch.end()
    other.close()
    daemon.stop()


@fault("sends a descriptor whose close lingers or never ends")
@pytest.mark.parametrize("options", [[], ["--keep-fds"]], ids=["alone", "with a store"])
def test_channel_that_is_replaced_takes_what_waits_in_it_elsewhere(
    options: list[str], start_daemon: StartDaemon
) -> None:
    daemon = start_daemon(*options)
    other, enemy = (Wire.connect(str(daemon.config.socket)) for _ in range(2))
    answer(other)
    ours, theirs = socket.socketpair()
    with lingering_socket() as sock, ours, theirs:
        socket.send_fds(ours, [b"x"], [sock.fileno()])
        os.close(sock.detach())
        enemy.send(encode_request(Q.SET_BACKEND_REQ_FD), [theirs.fileno()])
        answer(enemy)
        theirs.close()
        ours.close()
        again, end = socket.socketpair()
        with again, end:
            enemy.send(encode_request(Q.SET_BACKEND_REQ_FD), [again.fileno()])
            answer(enemy)
        answer_until(other, lambda: hanging(daemon) == 1)
    enemy.close()
    other.close()


def test_file_that_is_replaced_while_the_store_is_behind_holds_up_nobody(
    start_daemon: StartDaemon,
) -> None:
    # Of what it replaces then, the controller keeps a copy until it may put in the next state, and
    # the keeper lets go of its own as soon as it hears of that, or of the VM's end.
    daemon = start_daemon("--keep-fds")
    keeper = keeper_pid(daemon)
    other = Wire.connect(str(daemon.config.socket))
    answer(other)
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            enemy = Wire.connect(str(daemon.config.socket))
            ours, theirs = socket.socketpair()
            sock = stack.enter_context(lingering_socket())
            socket.send_fds(ours, [b"x"], [sock.fileno()])
            os.close(sock.detach())
            enemy.send(encode_request(Q.SET_BACKEND_REQ_FD), [theirs.fileno()])
            answer(enemy)
            ours.close()
            theirs.close()
            os.kill(keeper, signal.SIGSTOP)
            enemy.send(b"".join(map(sized, [8, 16] * 300)))
            again, end = socket.socketpair()
            with again, end:
                enemy.send(encode_request(Q.SET_BACKEND_REQ_FD), [again.fileno()])
            wait_until(lambda enemy=enemy: unread_bytes(enemy) == 0, what="all of it is taken")  # type: ignore[misc]
            os.kill(keeper, signal.SIGCONT)
            wait_until(lambda: is_asleep(keeper), what="the keeper has it all")
            enemy.close()
            answer(other)
    other.close()


def sized(size: int) -> bytes:
    """A request that nobody answers, and that has the VM's state kept anew."""
    return encode_request(Q.SET_VRING_NUM, VringState(0, size).encode())


@pytest.fixture
def first(start_daemon: StartDaemon) -> Daemon:
    return start_daemon("--keep-fds")


def test_child_that_hangs_beyond_its_controllers_end_keeps_no_memory_of_neighbours(
    first: Daemon, start_daemon: StartDaemon, make_guest: MakeGuest, mute: MuteFile
) -> None:
    guest, enemy = attach(make_guest(), first), Wire.connect(str(first.config.socket))
    wait_for_device([guest], first, "vm1")
    memory = file_of(os.fstat(guest.ram.fd))
    enemy.send(encode_request(*USES["err"]), [mute.fd])
    wait_until(lambda: mute.is_being_closed, what="its server has been asked")
    # One that is done may be kept for a moment.
    wait_until(lambda: len(closers(first)) == 1, what="only the child that hangs is left")
    (child,) = closers(first)
    assert memory in kept_files(child.pid)

    os.kill(first.pid, signal.SIGUSR1)
    first.wait_end()

    assert child.is_running()
    assert memory not in kept_files(child.pid)
    # Else whoever is forked from here would have to close it.
    mute.answer()
    start_daemon("--keep-fds")
    answer(enemy)
    run([guest], lambda: True)
    enemy.close()


def test_vm_that_is_not_kept_does_not_hold_up_the_end_of_a_controller_that_makes_way(
    start_daemon: StartDaemon,
) -> None:
    try:
        watch = WatchedFile("eventfd")
    except PermissionError as err:
        pytest.skip(str(err))
    # Room for one VM of this user's: it is the second that is not kept.
    daemon = start_daemon("--keep-fds", launcher=("prlimit", "--nofile=200:200"))
    first, enemy = (Wire.connect(str(daemon.config.socket)) for _ in range(2))
    answer(first)
    answer(enemy)
    os.kill(daemon.pid, signal.SIGSTOP)
    enemy.send(encode_request(*USES["err"]), [watch.fd])
    watch.leave_the_last_close_to_others()
    os.kill(daemon.pid, signal.SIGCONT)
    answer(enemy)

    os.kill(daemon.pid, signal.SIGUSR1)
    try:
        wait_until(lambda: not is_alive(daemon.pid), what="it ends")
    finally:
        watch.end()
    with pytest.raises(ConnectionError):
        enemy.receive()
    start_daemon("--keep-fds")
    answer(first)
    first.close()
    enemy.close()


@fault("sends an eventfd or a pipe that somebody watches by epoll")
def test_kick_of_a_ring_that_cannot_be_served_does_not_hold_up_a_controller_that_makes_way(
    start_daemon: StartDaemon,
) -> None:
    try:
        watch = WatchedFile("eventfd")
    except PermissionError as err:
        pytest.skip(str(err))
    daemon = start_daemon("--keep-fds")
    other, enemy = (Wire.connect(str(daemon.config.socket)) for _ in range(2))
    answer(other)
    answer(enemy)
    with Frozen(daemon):
        enemy.send(encode_request(Q.SET_VRING_KICK, U64.pack(0)), [watch.fd])
        enemy.send(encode_request(Q.SET_VRING_BASE, VringState(0, 1 << 16).encode()))
        watch.leave_the_last_close_to_others()
    answer(enemy)

    os.kill(daemon.pid, signal.SIGUSR1)
    try:
        wait_until(lambda: not is_alive(daemon.pid), what="it ends")
        start_daemon("--keep-fds")
        answer(enemy)
        answer(other)
    finally:
        watch.end()
    other.close()
    enemy.close()


StartOther = Callable[..., Daemon]


@pytest.fixture
def start_other(tmp_path: Path, low_mem: LowMemDir) -> Iterator[StartOther]:
    """Starts a balloond that ``limit_processes`` binds."""
    daemons: list[Daemon] = []

    def start(*options: str) -> Daemon:
        config = OtherUserConfig(tmp_path / "s", VM_MEM_MIB, low_mem, SPEED, options)
        daemons.append(Daemon(config, tmp_path / "log"))
        return daemons[-1]

    yield start
    for daemon in daemons:
        if keeper_path(daemon.config.socket).exists():
            # It takes no orders from another user.
            os.kill(keeper_pid(daemon), signal.SIGKILL)
        daemon.kill()


def assert_closed_by_others(daemon: Daemon, memory: os.stat_result) -> None:
    """A VMM has hung up while its controller may have no process: so nobody closes its memory."""
    file = file_of(memory)
    daemon.wait(
        lambda: facts(daemon, "vmm-hung-up") != [],
        what="it has seen the VMM's end",
    )
    assert file in kept_files(daemon.pid)
    limit_processes(daemon.pid, "1000")
    wait_until(lambda: file not in kept_files(daemon.pid), what="a child closes the memory")
    said = [r for r in daemon.records() if r["level"] in ("error", "warning")]
    assert [r for r in said if r["event"] != "devices-share-user"] == []


@fault("dies, and gigabytes of its memory are to be freed")
@pytest.mark.parametrize("options", [[], ["--keep-fds"]], ids=["alone", "with a store"])
def test_memory_of_a_vm_that_dies_is_freed_by_others(
    options: list[str], start_other: StartOther
) -> None:
    daemon = start_other(*options)
    guest = attach(FakeGuest(GuestSettings(VM_MEM_MIB * MIB)), daemon)
    device = wait_for_device([guest], daemon, "vm1")
    memory = os.fstat(guest.ram.fd)
    wait_until(lambda: closers(daemon) == [], what="no child is left to be used again")
    limit_processes(daemon.pid, "0")

    guest.close()

    # What it has mapped is freed by its own end, if that is the last that holds it.
    wait_until(lambda: not is_alive(device), what="its device ends")
    assert_closed_by_others(daemon, memory)


@fault("dies, and gigabytes of its memory are to be freed")
def test_memory_that_no_device_serves_is_freed_by_others(start_other: StartOther) -> None:
    daemon = start_other()
    vmm = Wire.connect(str(daemon.config.socket))
    answer(vmm)
    fd = os.memfd_create("guest")
    os.ftruncate(fd, PAGE_SIZE)
    region = RegionDescription(GuestAddr(0), PAGE_SIZE, FrontendAddr(1 << 40), 0)
    vmm.send(encode_request(Q.SET_MEM_TABLE, encode_memory_table([region])), [fd])
    answer(vmm)
    memory = os.fstat(fd)
    os.close(fd)
    limit_processes(daemon.pid, "0")

    vmm.close()

    assert_closed_by_others(daemon, memory)


def test_idle_children_that_end_are_not_waited_for(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closing, "IDLE_S", 0.05)
    closer, account = Closer(loop), FdAccount()
    close_dropped(peer(closer, account), os.open("/dev/null", os.O_RDONLY))
    turn_until(loop, lambda: account.waiting == 0, "it is closed")
    (idle,) = children("")
    waited = []
    waitpid = os.waitpid

    def waiting(pid: int, options: int) -> tuple[int, int]:
        waited.append(options)
        return waitpid(pid, options)

    monkeypatch.setattr(os, "waitpid", waiting)
    turn_until(loop, lambda: not psutil.pid_exists(idle.pid), "the child is reaped")
    assert waited
    assert set(waited) == {os.WNOHANG}
