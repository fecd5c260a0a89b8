"""Whose socket it is that balloond or its keeper finds, makes and removes, and who else may."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from balloon_daemon.cli import default_directory
from balloon_daemon.errors import ConfigError
from balloon_daemon.fake_guest.wire import Wire
from balloon_daemon.handover import fd_keeper
from balloon_daemon.handover.keeper_start import keeper_at, keeper_path, start_keeper
from balloon_daemon.linux.directories import (
    is_private,
    make_private,
    others_may_list,
    others_may_write,
)
from balloon_daemon.vhost_user.messages import FrontendRequest, encode_request
from tests.harness.daemon import BALLOOND, Daemon, DaemonConfig
from tests.harness.faults import fault
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.makers import SPEED, VM_MEM_MIB, StartDaemon
from tests.harness.waiting import HANG_S, wait_until

NOBODY = 65534
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, who alone has other users")


def refused(*options: str, status: int = 1) -> str:
    """What a start says that fails as it should, in one line."""
    run = subprocess.run([str(BALLOOND), *options], capture_output=True, text=True, timeout=HANG_S)
    assert run.returncode == status, run.stderr
    assert run.stderr.count("\n") == 1
    return run.stderr


def is_served(path: Path) -> bool:
    """Whether a VMM is answered there."""
    wire = Wire.connect(str(path))
    wire.send(encode_request(FrontendRequest.GET_FEATURES))
    answer, _ = wire.receive()
    wire.close()
    return answer.request == FrontendRequest.GET_FEATURES


def said(daemon: Daemon, level: str) -> list[str]:
    return [record["message"] for record in daemon.records() if record["level"] == level]


# --- directories ------------------------------------------------------------------------------


@fault("socket or keeper in a directory that others may write")
@pytest.mark.parametrize("mode", [0o1777, 0o777, 0o775, 0o770])
def test_directory_that_others_may_write_has_no_keeper(mode: int, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(mode)

    message = refused("--keep-fds", "--socket", str(shared / "s"))

    assert f"--keep-fds: others may write to {shared} (mode {mode:o}); name a socket" in message
    assert message == refused("--check", "--keep-fds", "--socket", str(shared / "s"))
    assert list(shared.iterdir()) == []


@fault("socket or keeper in a directory that others may write")
def test_socket_in_a_directory_that_others_may_write_is_warned_of(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o1777)

    daemon = start_daemon(name="shared/s")

    (warning,) = said(daemon, "warning")
    assert f"others may write to {tmp_path}/shared (mode 1777): whoever puts a socket" in warning
    assert is_served(daemon.config.socket)


@fault("socket or keeper in a directory that others may write")
def test_directory_of_ones_own_below_a_sticky_one_is_safe(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    own = tmp_path / "own"
    own.mkdir(mode=0o755)

    assert others_may_write(own) == ""
    tmp_path.chmod(0o777)
    assert others_may_write(own) == f"others may write to {tmp_path} (mode 777)"


@fault("socket or keeper in a directory that others may write")
def test_link_in_a_directory_that_others_may_write_is_seen(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir(mode=0o700)
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    (tmp_path / "shared" / "link").symlink_to(tmp_path / "own")

    assert str(tmp_path / "shared") in others_may_write(tmp_path / "shared" / "link")


@fault("socket or keeper in a directory that others may write")
@root_only
def test_directory_below_one_of_another_user_is_somebody_elses(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "vms").mkdir(parents=True)
    os.chown(home, NOBODY, NOBODY)

    assert others_may_write(home / "vms") == f"{home} belongs to user {NOBODY}"


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A directory that others may enter and not list; pytest's own they may not even enter."""
    with tempfile.TemporaryDirectory(prefix="balloond-test-") as name:
        Path(name).chmod(0o711)
        yield Path(name)


@fault("others may list the directory of balloond's sockets")
def test_directory_that_others_may_list_is_warned_of(open_place: Path, low_mem: LowMemDir) -> None:
    listed = open_place / "listed"
    listed.mkdir(mode=0o755)
    daemon = Daemon(DaemonConfig(listed / "s", VM_MEM_MIB, low_mem, SPEED), open_place / "log")
    try:
        (warning,) = said(daemon, "warning")
    finally:
        daemon.kill()

    assert f"others may list {listed} (mode 755): whoever lists it" in warning
    assert warning.endswith("use a directory of mode 711")


@fault("others may list the directory of balloond's sockets")
def test_directory_is_listed_by_others_only_where_they_can_enter_it(open_place: Path) -> None:
    directory = open_place / "run"
    directory.mkdir(mode=0o755)
    assert others_may_list(directory) == f"others may list {directory} (mode 755)"
    directory.chmod(0o711)
    assert others_may_list(directory) == ""
    directory.chmod(0o755)
    open_place.chmod(0o700)
    assert others_may_list(directory) == ""
    assert others_may_list(open_place / "missing") == ""


@fault("others may list the directory of balloond's sockets")
@root_only
@pytest.mark.parametrize(("mode", "closed"), [(0o755, 0o711), (0o775, 0o775), (0o711, 0o711)])
def test_default_directory_of_an_earlier_version_is_closed(
    mode: int, closed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another mode is somebody's wish."""
    directory = tmp_path / "balloond"
    directory.mkdir()
    directory.chmod(mode)
    monkeypatch.setattr(default_directory, "default_socket", lambda: directory / "balloond.sock")

    default_directory.close_default_directory()

    assert directory.stat().st_mode & 0o7777 == closed


@fault("somebody else has made the directory of a user's default socket")
@pytest.mark.parametrize("what", ["link", "file", "mode 755", "mode 1700"])
def test_private_directory_is_no_other_thing(what: str, tmp_path: Path) -> None:
    path = tmp_path / "private"
    match what.split():
        case ["link"]:
            (tmp_path / "own").mkdir(mode=0o700)
            path.symlink_to(tmp_path / "own")
        case ["file"]:
            path.touch(mode=0o700)
        case [_, mode]:
            path.mkdir()
            path.chmod(int(mode, 8))

    with pytest.raises(FileExistsError, match="with mode 700"):
        make_private(path)


@fault("somebody else has made the directory of a user's default socket")
@root_only
def test_private_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "private").mkdir(mode=0o700)
    os.chown(tmp_path / "private", NOBODY, NOBODY)

    with pytest.raises(FileExistsError):
        make_private(tmp_path / "private")


def test_private_directory_is_made_once_and_used_again(tmp_path: Path) -> None:
    for _ in range(2):
        make_private(tmp_path / "private")
    assert is_private(tmp_path / "private")


@fault("somebody else has made the directory of a user's default socket")
@root_only
@pytest.mark.parametrize(
    ("runtime", "expected"),
    [
        ("/run/user/7", "/run/user/7"),
        ("", f"/tmp/balloond-{NOBODY}"),
        ("relative", f"/tmp/balloond-{NOBODY}"),
    ],
)
def test_default_socket_of_a_user_is_in_a_directory_of_the_user(
    runtime: str, expected: str
) -> None:
    assert not Path(f"/run/user/{NOBODY}").exists()
    program = "from balloon_daemon.config.model import default_socket as d; print(d())"
    run = subprocess.run(
        [sys.executable, "-c", f"import os; os.setuid({NOBODY}); {program}"],
        env={"PATH": os.environ["PATH"], "XDG_RUNTIME_DIR": runtime},
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    assert run.stdout == f"{expected}/balloond.sock\n"


# --- the keeper -------------------------------------------------------------------------------


@fault("somebody else or something else where the keeper would listen")
def test_keeper_that_is_started_is_not_met_by_its_name(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
        other.bind(str(keeper_path(tmp_path / "s")))
        other.listen()
        other.setblocking(False)

        with pytest.raises(ConfigError, match=r"can be started at .*: Address already in use"):
            start_keeper(tmp_path / "s")

        # The keeper itself has looked whether somebody lives there, and said nothing.
        with contextlib.suppress(BlockingIOError):
            while True:
                connection, _ = other.accept()
                with connection:
                    assert connection.recv(100) == b""


@pytest.fixture
def hangs(start_daemon: StartDaemon) -> Iterator[Daemon]:
    """A balloond that was killed, and whose keeper holds its socket and answers nobody."""
    first = start_daemon("--keep-fds")
    first.kill()
    keeper = keeper_at(first.config.socket)
    assert keeper is not None
    os.kill(keeper.pid, signal.SIGSTOP)
    yield first
    # Whoever still waits to be answered has gone by then.
    os.kill(keeper.pid, signal.SIGCONT)


@fault("an earlier keeper hangs")
def test_keeper_that_hangs_is_gone_on_without(hangs: Daemon, start_daemon: StartDaemon) -> None:
    keeper = keeper_at(hangs.config.socket)
    assert keeper is not None

    second = start_daemon("--keep-fds")

    (error,) = said(second, "error")
    where = f"the keeper at {keeper_path(hangs.config.socket)} (process {keeper.pid})"
    assert error.startswith(f"{where} does not answer: nothing for 5 s; no VM is kept")
    assert error.endswith("end that process and restart balloond")
    assert is_served(second.config.socket)
    second.kill()


@fault("socket that a keeper holds for the next balloond")
def test_socket_that_a_keeper_holds_is_not_taken_from_it(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    first = start_daemon("--keep-fds")
    first.kill()
    before = os.lstat(first.config.socket)
    keeper = keeper_at(first.config.socket)
    assert keeper is not None

    message = refused("--socket", str(first.config.socket))

    assert f"process {keeper.pid} keeps it and its VMs for another balloond; start with" in message
    assert os.path.samestat(os.lstat(first.config.socket), before)


@fault("somebody else or something else where the keeper would listen")
@root_only
def test_keeper_removes_no_socket_of_another_user(tmp_path: Path) -> None:
    path = tmp_path / "keeper"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(str(path))
    os.chown(path, NOBODY, NOBODY)

    with pytest.raises(OSError, match="Address already in use"):
        fd_keeper.listen(str(path))
    assert path.is_socket()


@fault("somebody else or something else where the keeper would listen")
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_SEQPACKET])
def test_keeper_removes_no_socket_of_a_living_process(
    kind: socket.SocketKind, tmp_path: Path
) -> None:
    path = tmp_path / "keeper"
    with socket.socket(socket.AF_UNIX, kind) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(OSError, match="Address already in use"):
            fd_keeper.listen(str(path))
    assert path.is_socket()


# --- the vhost-user socket --------------------------------------------------------------------


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Path]:
    """A socket whose process is dead, and held by a child of it that hangs.

    As one that closes a file of FUSE does: it shares all descriptors and no SIGKILL ends it.
    """
    path = tmp_path / "balloond.sock"
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.bind(str(path))
            sock.listen()
            child = os.fork()
            if child == 0:
                signal.pause()
            os.write(writing, child.to_bytes(4, "little"))
        finally:
            os._exit(0)
    holder = int.from_bytes(os.read(reading, 4), "little")
    yield path
    os.kill(holder, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)
    os.close(reading)
    os.close(writing)


@fault("socket left by a process that died")
@pytest.mark.parametrize("reaped", [True, False], ids=["reaped", "zombie"])
def test_socket_of_a_dead_process_is_replaced_though_a_child_holds_it(
    reaped: bool, held: Path, start_daemon: StartDaemon
) -> None:
    if reaped:
        os.wait()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        assert probe.connect_ex(str(held)) == 0

    daemon = start_daemon()

    assert daemon.config.socket == held
    assert is_served(held)


@fault("two balloonds on one keeper, or on one socket")
def test_socket_that_was_kept_is_its_successors(start_daemon: StartDaemon) -> None:
    start_daemon("--keep-fds").kill()
    second = start_daemon("--keep-fds")

    message = refused("--socket", str(second.config.socket))

    assert "a running process listens there" in message
    assert is_served(second.config.socket)


@fault("a dead socket of another user where others may write")
@root_only
def test_dead_socket_of_another_user_is_left_alone_where_others_may_write(
    tmp_path: Path,
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(shared / "s"))
    os.chown(shared / "s", NOBODY, NOBODY)

    message = refused("--socket", str(shared / "s"))

    assert f"there is one of user {NOBODY}; name another path or remove it" in message
    assert (shared / "s").is_socket()


@fault("socket left by a process that died")
@root_only
def test_socket_that_was_given_to_a_vmms_user_is_kept_and_replaced(
    start_daemon: StartDaemon,
) -> None:
    first = start_daemon("--keep-fds")
    os.chown(first.config.socket, NOBODY, NOBODY)
    before = os.lstat(first.config.socket)
    first.kill()

    second = start_daemon("--keep-fds")
    kept = os.lstat(second.config.socket)
    second.kill()
    os.kill(keeper_at(second.config.socket).pid, signal.SIGKILL)  # type: ignore[union-attr]
    wait_until(lambda: keeper_at(second.config.socket) is None, what="the keeper is gone")
    third = start_daemon()

    assert os.path.samestat(kept, before)
    assert is_served(third.config.socket)
