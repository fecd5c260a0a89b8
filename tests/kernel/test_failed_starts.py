"""Starts that fail: one line, and nothing left behind, least of all a keeper with its streams."""

import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from balloon_daemon.handover import fd_keeper
from balloon_daemon.handover.fd_keeper import FORGET
from balloon_daemon.handover.keeper_start import MAX_PATH_BYTES, keeper_path
from tests.harness.daemon import BALLOOND
from tests.harness.faults import fault
from tests.harness.fd_keeper import end_keeper
from tests.harness.makers import StartDaemon
from tests.harness.marked_start import DEADLINE_S, MarkedStart
from tests.harness.waiting import wait_until

Start = Callable[..., MarkedStart]
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, who alone has other users")


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[MarkedStart] = []

    def make(*options: str, **kwargs: object) -> MarkedStart:
        started.append(MarkedStart(*options, **kwargs))  # type: ignore[arg-type] # its own
        return started[-1]

    yield make
    for one in started:
        one.kill()


def paths(directory: Path) -> list[Path]:
    return sorted(directory.rglob("*"))


def assert_fails(
    start: Start, directory: Path, status: int, complaint: str, *options: str, lines: int = 1
) -> None:
    """One line that says so, the right status, and neither a process nor a file more."""
    before = paths(directory)
    one = start(*options, "--keep-fds")

    assert one.end() == status, one.said
    assert one.processes() == []
    assert paths(directory) == before
    assert complaint in one.said
    assert one.said.startswith("balloond: ") or lines > 1
    assert one.said.count("\n") == lines
    assert one.printed == ""


@fault("any start that fails, with `--keep-fds` too")
@fault("something else at the socket's path")
@pytest.mark.parametrize(
    ("status", "complaint", "options"),
    [
        (2, "argument --margin", "--margin much"),
        (2, "unrecognized arguments", "--wibble"),
        (2, "policy file DIR/none: No such file or directory", "--policy DIR/none"),
        (2, "DIR/none: No such file or directory", "--low-mem-dir DIR/none"),
        (1, "socket DIR/none/s: there is no directory DIR/none", "--socket DIR/none/s"),
        (1, "socket DIR/file/s: DIR/file is no directory", "--socket DIR/file/s"),
        (1, "socket DIR/file: there is something else", "--socket DIR/file"),
        (1, "socket DIR: there is something else", "--socket DIR"),
        (1, "socket DIR/loop/s: Too many levels", "--socket DIR/loop/s"),
        (1, "socket DIR/link: there is something else", "--socket DIR/link"),
        (1, "socket DIR/link/s: there is no directory DIR/link", "--socket DIR/link/s"),
        (1, "socket /proc/s: no socket can be made in /proc; name an", "--socket /proc/s"),
        (1, "in /proc/self/fd; name another path", "--socket /proc/self/fd/s"),
        (1, "socket /sys/s: ", "--socket /sys/s"),
        (1, "the path is too long, 107 bytes are allowed", f"--socket DIR/{'x' * 120}"),
    ],
)
def test_start_that_fails_leaves_nothing(
    status: int, complaint: str, options: str, start: Start, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "link").symlink_to("gone")
    default = [] if "--socket" in options else ["--socket", str(tmp_path / "s")]

    assert_fails(
        start,
        tmp_path,
        status,
        complaint.replace("DIR", str(tmp_path)),
        *options.replace("DIR", str(tmp_path)).split(),
        *default,
    )


@fault("any start that fails, with `--keep-fds` too")
def test_policy_file_with_a_mistake_leaves_nothing(start: Start, tmp_path: Path) -> None:
    policy = tmp_path / "policy"
    policy.write_text("read: 1\nmadvise: arg2 == MADV_REMOVED\n")
    options = ("--socket", str(tmp_path / "s"), "--policy", str(policy))
    assert_fails(start, tmp_path, 2, f"{policy}:2:18: ", *options, lines=3)


@fault("any start that fails, with `--keep-fds` too")
@root_only
@pytest.mark.parametrize("user", ["nosuchuser", "root"])
def test_user_that_no_device_may_become_leaves_nothing(
    user: str, start: Start, tmp_path: Path
) -> None:
    options = ("--socket", str(tmp_path / "s"), "--user", user)
    assert_fails(start, tmp_path, 2, f"--user {user}: ", *options)


@fault("any start that fails, with `--keep-fds` too")
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_socket_in_use_leaves_nothing_and_is_left_alone(
    kind: socket.SocketKind, start: Start, tmp_path: Path
) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, kind) as other:
        other.bind(str(path))
        if kind != socket.SOCK_DGRAM:
            other.listen()
        assert_fails(start, tmp_path, 1, "a running process listens", "--socket", str(path))


@fault("any start that fails, with `--keep-fds` too")
def test_path_too_long_for_a_keeper_alone_leaves_nothing(start: Start, tmp_path: Path) -> None:
    room = MAX_PATH_BYTES - len(os.fsencode(tmp_path)) - 1
    path = tmp_path / ("s" * room)
    assert_fails(
        start, tmp_path, 1, "the path is too long, 100 bytes are allowed", "--socket", str(path)
    )


def test_relative_path_too_long_for_a_keeper_alone_leaves_nothing(
    start: Start, tmp_path: Path
) -> None:
    # A keeper runs in another directory.
    deep = tmp_path / ("d" * 60) / ("d" * 60)
    deep.mkdir(parents=True)
    one = start("--socket", "s", "--keep-fds", cwd=deep)
    assert one.end() == 1
    assert "the path is too long, 100 bytes are allowed beside a keeper" in one.said
    assert list(deep.iterdir()) == []


@fault("somebody else or something else where the keeper would listen")
@pytest.mark.parametrize("kind", ["file", "directory", "other_socket"])
def test_something_else_where_the_keeper_would_listen_leaves_nothing_and_is_left_alone(
    kind: str, start: Start, tmp_path: Path
) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        match kind:
            case "file":
                keeper_path(path).write_text("precious")
            case "directory":
                keeper_path(path).mkdir()
            case _:
                other.bind(str(keeper_path(path)))
                other.listen()
        assert_fails(start, tmp_path, 1, f"{keeper_path(path)}", "--socket", str(path))


@fault("somebody else or something else where the keeper would listen")
@root_only
def test_keeper_of_another_user_is_told_nothing(start: Start, tmp_path: Path) -> None:
    # It would be handed every guest's memory.
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
        other.bind(str(keeper_path(path)))
        os.chmod(keeper_path(path), 0o777)
        os.seteuid(65534)
        other.listen()
        os.seteuid(0)
        other.setblocking(False)

        assert_fails(start, tmp_path, 1, "is served by user 65534", "--socket", str(path))
        connection, _ = other.accept()
        with connection:
            assert connection.recv(100) == b""


@fault("any start that fails, with `--keep-fds` too")
def test_too_few_descriptors_leave_nothing(start: Start, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    launcher = ("prlimit", "--nofile=20:20", "--", sys.executable, "-m", "balloon_daemon")
    one = start("--socket", str(tmp_path / "s"), "--keep-fds", program=launcher)

    assert one.end() == 1
    assert one.processes() == []
    assert list(tmp_path.iterdir()) == []
    assert before == resource.getrlimit(resource.RLIMIT_NOFILE)


BROKEN = """\
import sys
from balloon_daemon.controller import loop
from balloon_daemon.guests.jailed import listener
def fail(self):
    raise OSError(24, "Too many open files")
{what} = fail
from balloon_daemon.__main__ import main
sys.exit(main())
"""


@fault("fails once its keeper runs")
@pytest.mark.parametrize(
    "what", ["loop.MemoryWatch.__init__", "listener.VhostUserGuests._take_over"]
)
def test_start_that_fails_after_its_keeper_was_started_ends_that_too(
    what: str, start: Start, tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(BROKEN.format(what=what).replace("fail(self)", "fail(self, *args)"))
    one = start(
        *("--socket", str(tmp_path / "s"), "--keep-fds"),
        program=(sys.executable, str(program)),
    )

    assert one.end() == 1
    assert one.processes() == []
    assert list(tmp_path.iterdir()) == [program]
    assert one.said == "balloond: Too many open files\n"


@fault("fails once its keeper runs")
def test_start_that_fails_leaves_an_earlier_balloonds_keeper_alone(
    start: Start, start_daemon: StartDaemon, tmp_path: Path
) -> None:
    # Its guests are still to be taken over.
    first = start_daemon("--keep-fds")
    first.kill()
    first.config.socket.unlink()
    first.config.socket.mkdir()
    one = start("--socket", str(first.config.socket), "--keep-fds")

    assert one.end() == 1
    assert "there is something else" in one.said
    first.config.socket.rmdir()
    assert keeper_path(first.config.socket).is_socket()
    second = start_daemon("--keep-fds")
    assert second.config.socket.is_socket()


# --- a keeper that is started as it should be ----------------------------------------------------


@fault("balloond killed whose output somebody reads through a pipe")
def test_keeper_outlives_its_balloond_and_holds_none_of_its_streams(
    start: Start, tmp_path: Path
) -> None:
    path = tmp_path / "s"
    one = start("--socket", str(path), "--keep-fds")
    wait_until(path.is_socket, deadline_s=DEADLINE_S, what="it is bound")
    wait_until(
        lambda: len(one.processes()) == 3, deadline_s=DEADLINE_S, what="keeper and template run"
    )
    os.kill(one.pid, signal.SIGKILL)

    # Whoever reads them comes to their end.
    assert one.end() == -signal.SIGKILL
    wait_until(lambda: len(one.processes()) == 1, deadline_s=DEADLINE_S, what="the keeper is left")
    (keeper,) = one.processes()
    streams = {os.readlink(f"/proc/{keeper}/fd/{fd}") for fd in range(3)}
    assert streams == {"/dev/null"}
    wait_until(lambda: os.readlink(f"/proc/{keeper}/cwd") == "/", what="it has left the directory")
    end_keeper(keeper_path(path))


@fault("started in a directory with Python files of somebody else's")
def test_code_in_the_current_directory_is_not_run(start: Start, tmp_path: Path) -> None:
    package = tmp_path / "balloon_daemon" / "handover"
    package.mkdir(parents=True)
    trap = "import os; open(os.environ['TRAPPED'], 'w')\n"
    for path in (
        package.parent / "__init__.py",
        package / "__init__.py",
        package / "fd_keeper.py",
        tmp_path / "socket.py",
        tmp_path / "sitecustomize.py",
    ):
        path.write_text(trap)
    trapped = tmp_path / "trapped"
    one = start(
        *("--socket", "s", "--keep-fds"),
        cwd=tmp_path,
        environment={"TRAPPED": str(trapped)},
    )
    wait_until(
        lambda: len(one.processes()) == 3, deadline_s=DEADLINE_S, what="keeper and template run"
    )
    wait_until(
        keeper_path(tmp_path / "s").is_socket, deadline_s=DEADLINE_S, what="the keeper listens"
    )
    os.kill(one.pid, signal.SIGKILL)
    one.end()

    end_keeper(keeper_path(tmp_path / "s"))
    assert not trapped.exists()


@pytest.mark.parametrize("path", ["none/s", "", "x" * 200, None])
def test_keeper_by_itself_says_why_it_cannot_begin_by_its_exit_status_alone(
    path: str | None, tmp_path: Path
) -> None:
    where = [] if path is None else [str(tmp_path / path)]
    run = subprocess.run(
        [sys.executable, "-I", fd_keeper.__file__, *where], capture_output=True, timeout=DEADLINE_S
    )
    assert run.returncode >= fd_keeper.EXIT_ERRNO
    assert (run.stdout, run.stderr) == (b"", b"")


def test_keeper_ignores_the_terminals_signals_and_ends_when_told(tmp_path: Path) -> None:
    path = tmp_path / "keeper"
    keeper = subprocess.Popen([sys.executable, "-I", fd_keeper.__file__, path])
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        wait_until(
            lambda: sock.connect_ex(str(path)) == 0, deadline_s=DEADLINE_S, what="it listens"
        )
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            keeper.send_signal(number)
        sock.send(FORGET)
        assert keeper.wait(DEADLINE_S) == 0
    assert not path.exists()


@fault("`systemctl restart` with a mistake")
def test_start_that_fails_is_no_more_than_one_in_five_seconds_where_systemd_keeps_vms(
    start: Start, tmp_path: Path
) -> None:
    file = tmp_path / "balloond.toml"
    file.write_text("[vm.web]\nqpm = '/run/web.qmp'\n")
    as_stored = ("sh", "-c", 'LISTEN_PID=$$ exec "$0" "$@"', str(BALLOOND))
    one = start("--config", str(file), program=as_stored)

    assert one.next_lines(2) == [
        f'balloond: {file}:2: [vm.web] qpm = "/run/web.qmp": there is no such key; did you mean '
        "qmp?",
        "balloond: systemd keeps the VMs of the balloond before; their balloons stay as they are "
        "until one starts, which is tried each 5 s",
    ]
    assert not one.ended
    os.kill(one.pid, signal.SIGTERM)
    # The unit has no further start after 2 (RestartPreventExitStatus=).
    assert one.end() == 1
