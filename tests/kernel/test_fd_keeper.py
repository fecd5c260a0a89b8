"""The process that keeps descriptors, by itself."""

import _thread
import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from balloon_daemon.handover import fd_keeper
from balloon_daemon.handover.fd_keeper import (
    ANSWERS,
    END,
    FORGET,
    MAX_HANGING,
    TAKE,
    Keeper,
    Server,
)
from balloon_daemon.handover.keeper_start import keeper_at, start_keeper
from balloon_daemon.handover.keys import FdKey, StateKey
from balloon_daemon.handover.store import SocketStore
from balloon_daemon.linux.events import OwnedFd
from tests.harness.faults import fault
from tests.harness.fd_keeper import file_of, kept_files
from tests.harness.open_files import open_files
from tests.harness.slow_close import MuteFile, lingering_socket
from tests.harness.waiting import HANG_S, wait_until


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


@fault("balloond killed while")
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
            assert sock.recv(100) == ANSWERS
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
        assert second.recv(100) == ANSWERS
        assert second.recv(100) == END
        second.send(FORGET)
        assert keeper.wait(HANG_S) == 0
        second.close()
    finally:
        os.kill(holder, signal.SIGKILL)
    for fd in (reading, writing, *fds):
        os.close(fd)


@fault("keeper that ends late, after its successor has begun")
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


@pytest.fixture
def keeper(tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    process = start(tmp_path / "keeper")
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def balloond(keeper: "subprocess.Popen[bytes]", tmp_path: Path) -> Iterator[socket.socket]:
    """A connection to the keeper."""
    sock = wait_until(lambda: reach(tmp_path / "keeper"), what="the keeper listens")
    assert sock is not None
    with sock:
        sock.settimeout(HANG_S)
        yield sock


MANY = 100
"""Closes that hang: more than one user's VMMs can bring about in the keeper (``MAX_HANGING``)."""

STORE, REMOVE = b"FDSTORE=1\nFDNAME=vm1.1", b"FDSTOREREMOVE=1\nFDNAME=vm1.1"


def is_open(fd: int) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


def store_a_channel_with(balloond: socket.socket, fd: int) -> None:
    """Stores a channel in whose queue this descriptor waits. Nobody else has either of them."""
    channel, theirs = socket.socketpair()
    with channel, theirs:
        socket.send_fds(theirs, [b"x"], [fd])
        os.close(fd)
        socket.send_fds(balloond, [STORE], [channel.fileno()])


@fault("sends a descriptor whose close lingers or never ends")
def test_socket_that_lingers_in_a_dropped_channel_does_not_hold_up_the_keeper(
    balloond: socket.socket, keeper: "subprocess.Popen[bytes]"
) -> None:
    with contextlib.ExitStack() as stack:
        # One more than may hang at a time: it stays open, and holds nobody up either.
        for _ in range(MAX_HANGING + 1):
            sock = stack.enter_context(lingering_socket())
            store_a_channel_with(balloond, sock.detach())
            balloond.send(REMOVE)
        balloond.send(TAKE)

        assert balloond.recv(100) == ANSWERS
        assert balloond.recv(100) == END
        balloond.send(FORGET)
        assert keeper.wait(HANG_S) == 0


@fault("sends a descriptor whose close lingers or never ends")
def test_many_closes_that_hang_keep_no_other_descriptor_open(
    balloond: socket.socket, keeper: "subprocess.Popen[bytes]"
) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(MANY):
            sock = stack.enter_context(lingering_socket())
            store_a_channel_with(balloond, sock.detach())
            balloond.send(REMOVE)
        reading, writing = os.pipe()
        file = file_of(os.fstat(reading))
        socket.send_fds(balloond, [STORE], [reading])
        os.close(reading)
        wait_until(lambda: file in kept_files(keeper.pid), what="the keeper has it")
        balloond.send(REMOVE)

        wait_until(lambda: file not in kept_files(keeper.pid), what="the pipe is let go")
        os.close(writing)


def test_closes_that_hang_keep_no_memory(
    balloond: socket.socket, keeper: "subprocess.Popen[bytes]"
) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_HANGING + 1):
            sock = stack.enter_context(lingering_socket())
            store_a_channel_with(balloond, sock.detach())
            balloond.send(REMOVE)
        memory = os.memfd_create("guest")
        file = file_of(os.fstat(memory))
        socket.send_fds(balloond, [STORE], [memory])
        os.close(memory)
        wait_until(lambda: file in kept_files(keeper.pid), what="the keeper has it")
        balloond.send(REMOVE)

        wait_until(lambda: file not in kept_files(keeper.pid), what="the memory is let go")


@fault("sends a file with many locks")
@fault("sends a descriptor whose close lingers or never ends")
def test_no_descriptor_but_a_state_is_closed_on_the_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> int:
        raise RuntimeError("can't start new thread")

    keeper = Keeper()
    memory, state = (os.memfd_create(name) for name in ("guest", "balloond-state"))
    names = [str(key).encode() for key in (FdKey(1, 1), StateKey(1, 1))]
    for name, fd in zip(names, (memory, state), strict=True):
        keeper.handle(b"FDSTORE=1\nFDNAME=" + name, [fd])
    with monkeypatch.context() as full:
        full.setattr(_thread, "start_new_thread", refuse)
        for name in names:
            keeper.handle(b"FDSTOREREMOVE=1\nFDNAME=" + name, [])
    assert [is_open(fd) for fd in (memory, state)] == [True, False]

    keeper.close([])

    wait_until(lambda: not is_open(memory), what="a thread has closed it")


@fault("sends a descriptor whose close lingers or never ends")
def test_file_that_never_answers_does_not_hold_up_the_keeper(
    balloond: socket.socket, tmp_path: Path
) -> None:
    try:
        mute = MuteFile(tmp_path / "mounted")
    except PermissionError as err:
        pytest.skip(str(err))
    try:
        socket.send_fds(balloond, [STORE], [mute.fd])
        balloond.send(REMOVE)
        wait_until(lambda: mute.is_being_closed, what="its server has been asked")
        balloond.send(TAKE)

        assert balloond.recv(100) == ANSWERS
        assert balloond.recv(100) == END
    finally:
        mute.close()


@fault("VMM hangs up while no controller runs")
def test_many_vms_that_end_at_once_keep_no_new_balloond_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first of them takes all the time that there is.
    monkeypatch.setattr(fd_keeper, "ENDS_S", -1.0)
    listener = fd_keeper.listen(str(tmp_path / "keeper"))
    server = Server(listener)
    for number in range(3):
        vmm, ours = socket.socketpair()
        words = f"FDSTORE=1\nFDNAME={FdKey(number + 1, 1)}\nFDVMM=1"
        server._keeper.handle(words.encode(), [ours.detach()])
        vmm.close()
    balloond = reach(tmp_path / "keeper")
    assert balloond is not None
    with balloond:
        balloond.settimeout(HANG_S)
        assert server.turn()
        balloond.send(TAKE)
        assert server.turn()

        names = [balloond.recv(100) for _ in range(4)]
        assert names[2:] == [ANSWERS, END]
    # The keeper is rid of its client, and one after the other of those that have ended.
    assert all(server.turn() for _ in range(3))
    assert server._keeper.kept == {}
    listener.close()


@fault("sends a descriptor whose close lingers or never ends")
def test_close_that_found_no_thread_is_done_with_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise RuntimeError("can't start new thread")

    keeper, (first, second) = Keeper(), socket.socketpair()
    with monkeypatch.context() as full:
        full.setattr(_thread, "start_new_thread", refuse)
        keeper.close([first.detach()])
    with second:
        second.settimeout(0)
        with pytest.raises(BlockingIOError):
            second.recv(1)
        second.settimeout(HANG_S)

        keeper.close([])

        assert second.recv(1) == b""


def store(balloond: socket.socket, name: str, more: str = "") -> None:
    """Stores a pipe under a name."""
    reading, writing = os.pipe()
    message = f"FDSTORE=1\nFDNAME={name}{more}".encode()
    socket.send_fds(balloond, [message], [reading])
    os.close(reading)
    os.close(writing)


def kept(balloond: socket.socket) -> list[str]:
    """The names of all that the keeper keeps."""
    names = []
    balloond.send(TAKE)
    while (received := socket.recv_fds(balloond, 100, 1))[0] != END:
        message, fds, _, _ = received
        if message == ANSWERS:
            continue
        names.append(message.decode().removeprefix("FDNAME="))
        os.close(fds[0])
    return names


def test_state_that_is_kept_replaces_what_it_names(balloond: socket.socket) -> None:
    for name in ("vm1.1", "vm1.2", "vm1.state-1", "vm10.1"):
        store(balloond, name)
    store(balloond, "vm1.state-2", "\nFDREPLACES=vm1.state-1 vm1.2\nFDLOSSES=0")
    assert kept(balloond) == ["vm1.1", "vm10.1", "vm1.state-2"]


@pytest.mark.parametrize("answers", [True, False], ids=["keeper", "systemd or an old keeper"])
def test_store_that_does_not_replace_by_itself_is_told_each_step(answers: bool) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    store = SocketStore(ours, {}, is_keeper=True, capacity=100, answers=answers)
    fd = OwnedFd(os.eventfd(0))
    store.replace("vm1.state-2", fd, ["vm1.state-1", "vm1.7"])
    store.close()
    fd.close()
    said = []
    with theirs:
        while message := theirs.recv(100):
            said.append(message.decode().split("\n"))
    removals = [["FDSTOREREMOVE=1", f"FDNAME={name}"] for name in ("vm1.state-1", "vm1.7")]
    assert {"FDSTORE=1", "FDNAME=vm1.state-2"} < set(said[0])
    assert ("FDREPLACES=vm1.state-1 vm1.7" in said[0]) == answers
    assert said[1:] == ([] if answers else removals)


@fault("keeper without a descriptor left")
def test_keeper_without_room_says_what_it_lost_and_keeps_the_state_of_before(
    keeper: "subprocess.Popen[bytes]", balloond: socket.socket
) -> None:
    for name in ("vm1.1", "vm1.2", "vm1.state-1", "vm2.1", "vm2.state-1"):
        store(balloond, name)
    kept(balloond)
    resource.prlimit(keeper.pid, resource.RLIMIT_NOFILE, (3, 4096))
    store(balloond, "vm1.3")
    assert balloond.recv(100) == b"FDLOST=vm1.3\nFDLOSSES=1"
    resource.prlimit(keeper.pid, resource.RLIMIT_NOFILE, (4096, 4096))

    # It names what was lost, as who sent it has not heard of that yet.
    store(balloond, "vm1.state-2", "\nFDREPLACES=vm1.state-1 vm1.2\nFDLOSSES=0")
    store(balloond, "vm2.state-2", "\nFDREPLACES=vm2.state-1\nFDLOSSES=0")
    store(balloond, "vm1.4")
    store(balloond, "vm1.state-3", "\nFDKEEPS=vm1.1 vm1.4\nFDLOSSES=0")
    before = {"vm1.1", "vm1.2", "vm1.state-1"}
    later = {"vm1.state-2", "vm1.4", "vm1.state-3"}
    assert set(kept(balloond)) == before | later | {"vm2.1", "vm2.state-2"}


@fault("keeper without a descriptor left")
def test_who_has_heard_of_a_loss_says_what_is_to_stay(
    keeper: "subprocess.Popen[bytes]", balloond: socket.socket
) -> None:
    for name in ("vm1.1", "vm1.2", "vm1.state-1", "vm10.1"):
        store(balloond, name)
    kept(balloond)
    resource.prlimit(keeper.pid, resource.RLIMIT_NOFILE, (3, 4096))
    for _ in range(2):
        store(balloond, "vm1.state-2")
        balloond.recv(100)
    resource.prlimit(keeper.pid, resource.RLIMIT_NOFILE, (4096, 4096))

    store(balloond, "vm1.state-3", "\nFDKEEPS=vm1.1\nFDLOSSES=2")
    assert set(kept(balloond)) == {"vm1.1", "vm1.state-3", "vm10.1"}


@fault("keeper without a descriptor left")
def test_balloond_that_reads_no_answers_is_served_on(
    keeper: "subprocess.Popen[bytes]", balloond: socket.socket
) -> None:
    store(balloond, "vm1.1")
    kept(balloond)
    resource.prlimit(keeper.pid, resource.RLIMIT_NOFILE, (3, 4096))
    for _ in range(2000):
        store(balloond, "vm1.2")
    resource.prlimit(keeper.pid, resource.RLIMIT_NOFILE, (4096, 4096))
    store(balloond, "vm1.3")
    balloond.send(TAKE)
    # What it was told, as far as there was room for it, comes first.
    names = set[bytes]()
    while (received := socket.recv_fds(balloond, 100, 1))[0] != END:
        names.add(received[0].partition(b"\n")[0])
        for fd in received[1]:
            os.close(fd)
    assert {b"FDLOST=vm1.2", b"FDNAME=vm1.1", b"FDNAME=vm1.3"} <= names


def test_started_keeper_has_nothing_of_whoever_started_balloond(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.set_inheritable(write, True)
    store = start_keeper(tmp_path / "s")
    try:
        credentials = keeper_at(tmp_path / "s")
        assert credentials is not None
        process = Path(f"/proc/{credentials.pid}")
        opened = list(open_files(process).values())
        assert opened.count(os.devnull) == 3
        assert [each for each in opened if each.startswith("pipe:")] == []
        assert os.readlink(process / "cwd") == "/"
        assert os.getsid(credentials.pid) == credentials.pid
    finally:
        os.close(read)
        os.close(write)
        store.abandon()
    assert keeper_at(tmp_path / "s") is None
    assert not process.exists()


def test_balloond_starts_a_keeper_without_loading_subprocess(tmp_path: Path) -> None:
    program = """\
import sys
from pathlib import Path
import balloon_daemon.cli.run
from balloon_daemon.handover.keeper_start import start_keeper
start_keeper(Path(sys.argv[1])).abandon()
print(hasattr(sys.modules["subprocess"], "__file__"), "locale" in sys.modules)
"""
    command = [sys.executable, "-c", program, str(tmp_path / "s")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"
