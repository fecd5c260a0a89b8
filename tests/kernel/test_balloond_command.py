"""The command line: what is printed, where, and with which exit status."""

import contextlib
import errno
import os
import resource
import shlex
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from balloon_daemon import __version__
from balloon_daemon.fake_guest.machine import run
from balloon_daemon.vhost_user.messages import FrontendRequest, encode_request
from tests.harness.daemon import BALLOOND, Daemon
from tests.harness.faults import fault
from tests.harness.jail_watch import template_of
from tests.harness.makers import MakeGuest, StartDaemon
from tests.harness.waiting import HANG_S
from tests.harness.whole_vm import attach, wait_for_device


def balloond(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(BALLOOND), *args], capture_output=True, text=True, timeout=HANG_S)


def test_help_names_every_flag_and_the_exit_statuses() -> None:
    run = balloond("--help")

    assert run.returncode == 0
    for flag in ("--vm-mem", "--socket", "--low-mem-dir", "--margin", "--log", "--check"):
        assert flag in run.stdout
    assert "exit status" in run.stdout


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_help_and_version_on_a_full_disk_give_no_traceback(flag: str) -> None:
    with open("/dev/full", "w") as full:
        run = subprocess.run(
            [BALLOOND, flag], stdout=full, stderr=subprocess.PIPE, text=True, timeout=HANG_S
        )
    assert (run.returncode, run.stderr) == (0, "")


@fault("output and log on a full disk")
def test_check_on_a_full_disk_names_standard_output(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        run = subprocess.run(
            [BALLOOND, "--check", "--socket", str(tmp_path / "s")],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=HANG_S,
        )
    said = "balloond: standard output: No space left on device; write it to another place\n"
    assert (run.returncode, run.stderr) == (1, said)


@fault("output and log on a full disk")
def test_check_whose_reader_has_gone_ends_quietly(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        run = subprocess.run(
            [BALLOOND, "--check", "--socket", str(tmp_path / "s")],
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            timeout=HANG_S,
        )
    finally:
        os.close(writing)
    assert (run.returncode, run.stderr) == (1, "")


@fault("output and log on a full disk")
def test_wrong_flag_that_cannot_be_told_on_a_full_disk_is_status_2_all_the_same() -> None:
    with open("/dev/full", "w") as full:
        run = subprocess.run([BALLOOND, "--wibble"], stderr=full, timeout=HANG_S)
    assert run.returncode == 2


@pytest.mark.parametrize("socket", ["/", "."])
def test_path_at_which_no_socket_can_be_is_one_line_with_a_keeper_too(socket: str) -> None:
    run = balloond("--keep-fds", "--socket", socket)
    assert run.returncode == 1
    assert run.stderr.count("\n") == 1
    assert run.stderr.startswith("balloond: socket ")


def test_version_is_the_packages() -> None:
    assert balloond("--version").stdout == f"balloond {__version__}\n"


@fault("wrong flag or setting; a user that no device may become")
@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        ("--vm-mem 4Q", "'4Q' is not a size; write it like 4G, 512M or 1.5GiB"),
        ("--vm-mem 0", "'0' is not a size of at least one byte"),
        ("--margin -5M", "argument --margin"),
        ("--speed 0", "0 is not from 0.1 to 1000"),
        ("--wibble", "unrecognized arguments: --wibble"),
        ("--log xml", "invalid choice: 'xml'"),
        ("--low-mem-dir /nonexistent --check", "/nonexistent: No such file or directory"),
        ("--policy /nonexistent --check", "policy file /nonexistent: No such file or directory"),
        ("--policy / --check", "policy file /: Is a directory"),
    ],
)
def test_wrong_usage_one_line_status_2(args: str, complaint: str, tmp_path: Path) -> None:
    run = balloond("--socket", str(tmp_path / "s"), *shlex.split(args))

    assert run.returncode == 2
    assert run.stdout == ""
    assert complaint in run.stderr
    assert run.stderr.count("\n") == 1


def test_machine_on_which_no_ring_can_be_served_one_line_status_2(tmp_path: Path) -> None:
    # personality(2), PER_LINUX32: uname(2) answers as on a machine of 32 bits.
    run = subprocess.run(
        ["setarch", "i686", BALLOOND, "--socket", str(tmp_path / "s")],
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )

    said = "balloond: balloond runs on x86-64 Linux, not on i686 Linux\n"
    assert (run.returncode, run.stdout, run.stderr) == (2, "", said)


@fault("mistake in a policy file")
def test_policy_file_with_a_mistake_shows_place_and_caret(tmp_path: Path) -> None:
    policy = tmp_path / "bad.policy"
    policy.write_text("read: 1\nmadvise: arg2 == MADV_REMOVED\n")

    run = balloond("--check", "--socket", str(tmp_path / "s"), "--policy", str(policy))

    place, source, caret = run.stderr.splitlines()[:3]
    assert run.returncode == 2
    assert place.startswith(f"{policy}:2:18: ")
    assert source.strip() == "madvise: arg2 == MADV_REMOVED"
    assert caret.index("^") == source.index("MADV_REMOVED")


@fault("mistake in a policy file")
def test_unreadable_policy_file_one_line_status_2(tmp_path: Path) -> None:
    policy = tmp_path / "binary.policy"
    policy.write_bytes(b"\xff\xfe\x00\x00")

    run = balloond("--check", "--socket", str(tmp_path / "s"), "--policy", str(policy))

    assert run.returncode == 2
    assert "Traceback" not in run.stderr
    assert str(policy) in run.stderr


@fault("two balloonds on one keeper, or on one socket")
def test_socket_of_a_living_process_is_left_alone(daemon: Daemon) -> None:
    run = balloond("--socket", str(daemon.config.socket))

    assert run.returncode == 1
    assert run.stderr == (
        f"balloond: socket {daemon.config.socket}: a running process listens there; "
        "stop it or name another path\n"
    )
    assert daemon.config.socket.is_socket()


@fault("socket left by a process that died")
def test_socket_left_by_a_dead_process_is_replaced(start_daemon: StartDaemon) -> None:
    first = start_daemon()
    first.kill()
    assert first.config.socket.is_socket()

    second = start_daemon()

    second.wait(
        lambda: any(r["event"] == "listening" for r in second.records()),
        what="it listens",
    )


@fault("something else at the socket's path")
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_socket_path_of_something_else_is_left_alone(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "precious"
    if kind == "file":
        path.write_text("data")
    else:
        path.mkdir()

    run = balloond("--socket", str(path))

    assert run.returncode == 1
    assert "there is something else" in run.stderr
    assert path.exists()


@fault("something else at the socket's path")
@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("/nonexistent/s", "there is no directory /nonexistent; make it"),
        ("/proc/s", "no socket can be made in /proc; name another path"),
        ("/proc/self/fd/s", "no socket can be made in /proc/self/fd; name another path"),
        ("/proc/version/s", "/proc/version is no directory; name another path"),
        ("/tmp/" + "x" * 200, "the path is too long"),
    ],
)
def test_socket_that_cannot_be_made_one_line_status_1(path: str, complaint: str) -> None:
    run = balloond("--socket", path)

    assert run.returncode == 1
    assert complaint in run.stderr
    assert run.stderr.count("\n") == 1


@fault("something else at the socket's path")
def test_socket_in_a_forbidden_directory_one_line_status_1() -> None:
    # Not even root may make a file there; in a container it is often read-only.
    run = balloond("--socket", "/sys/balloond-test.sock")

    whys = (os.strerror(number) for number in (errno.EPERM, errno.EACCES, errno.EROFS))
    assert run.returncode == 1
    assert run.stderr in {
        f"balloond: socket /sys/balloond-test.sock: {why}: this user cannot make a file in /sys; "
        "let it write there, or name another path (--socket)\n"
        for why in whys
    }


WITHOUT_ROOTS_RIGHTS = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")


@fault("wrong flag or setting; a user that no device may become")
@pytest.mark.parametrize(
    ("flag", "complaint"),
    [
        ("--low-mem-dir", ": Permission denied: balloond must be able to read it; give its user"),
        ("--policy", ": Permission denied; let the user who starts this read it, or name another"),
    ],
)
def test_unreadable_file_is_told_with_the_right_that_is_missing(
    flag: str, complaint: str, tmp_path: Path
) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0)
    named = hidden if flag == "--low-mem-dir" else hidden / "a.policy"
    launcher = WITHOUT_ROOTS_RIGHTS if os.geteuid() == 0 else ()
    run = subprocess.run(
        [*launcher, str(BALLOOND), "--check", "--socket", str(tmp_path / "s"), flag, str(named)],
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )

    assert (run.returncode, run.stdout) == (2, "")
    assert f"{named}{complaint}" in run.stderr
    assert run.stderr.count("\n") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, whose default is in /run")
@pytest.mark.parametrize("was_there", [True, False])
def test_check_leaves_the_default_sockets_directory_as_it_was(
    was_there: bool, tmp_path: Path
) -> None:
    # Root's default is in /run: here a tmpfs of this process's own, without that directory.
    script = """
        mount -t tmpfs none /run || exit
        [ "$1" = True ] && mkdir /run/balloond
        "$0" --check >/dev/null || exit
        ls /run
    """
    run = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, str(BALLOOND), str(was_there)],
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == ("balloond\n" if was_there else "")


@fault("wrong flag or setting; a user that no device may become")
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, who alone changes a device's user")
@pytest.mark.parametrize("user", ["nosuchuser", "root"])
def test_user_that_no_device_may_become_status_2(user: str, tmp_path: Path) -> None:
    run = balloond("--check", "--socket", str(tmp_path / "s"), "--user", user)

    assert run.returncode == 2
    assert f"--user {user}: " in run.stderr


def test_check_says_what_it_found_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "available").write_text("900\n")
    (tmp_path / "margin").write_text("400 1000\n")
    path = tmp_path / "s"

    run = balloond(
        "--check", "--socket", str(path), "--vm-mem", "4G", "--low-mem-dir", str(tmp_path)
    )

    assert run.returncode == 0, run.stderr
    assert "balloon_device.policy: compiled" in run.stdout
    assert "900 MiB available, margin 400 MiB, not low" in run.stdout
    assert "at most 3 GiB of 4 GiB, in 16 steps of 192 MiB" in run.stdout
    assert not path.exists()


def test_started_prints_how_crosvm_and_qemu_attach(daemon: Daemon) -> None:
    printed = (daemon.log_path.parent / "balloond.out").read_text()

    assert f"--vhost-user balloon,socket={daemon.config.socket}" in printed
    assert f"-chardev socket,id=balloond,path={daemon.config.socket}" in printed
    assert "vhost-user-test-device-pci" in printed


SERVICE = {"INVOCATION_ID": "f00d"}


@pytest.mark.parametrize(
    ("environment", "terminal", "prints"),
    [
        ({}, False, True),
        ({}, True, True),
        (SERVICE, False, False),
        # A terminal may be a service itself.
        (SERVICE, True, True),
        ({"NOTIFY_SOCKET": "/nonexistent/notify"}, False, False),
    ],
)
def test_how_to_attach_is_printed_where_a_person_reads_it(
    environment: dict[str, str], terminal: bool, prints: bool, tmp_path: Path
) -> None:
    own = {name: os.environ[name] for name in os.environ.keys() - {*SERVICE, "NOTIFY_SOCKET"}}
    reading, writing = os.openpty() if terminal else os.pipe()
    process = subprocess.Popen(
        [str(BALLOOND), "--socket", str(tmp_path / "s")],
        stdout=writing,
        stderr=subprocess.PIPE,
        env=own | environment,
    )
    os.close(writing)
    try:
        assert process.stderr is not None
        assert b"listening" in process.stderr.readline()
        process.terminate()
        process.communicate(timeout=60)
        seen = b""
        with contextlib.suppress(OSError):  # A terminal whose other end is closed.
            while more := os.read(reading, 65536):
                seen += more
    finally:
        process.kill()
        process.wait()
        os.close(reading)
    assert (b"Attach a VM" in seen) == prints


def test_how_to_attach_is_not_printed_again_where_guests_are_taken_over(
    start_daemon: StartDaemon, make_guest: MakeGuest
) -> None:
    first = start_daemon("--keep-fds")
    attach(make_guest(), first)
    out = first.log_path.parent / "balloond.out"
    assert "Attach a VM" in out.read_text()
    first.kill()
    start_daemon("--keep-fds")
    assert out.read_text() == ""


@pytest.mark.parametrize("name", [b"\xff", "überall".encode(), b"with space", b"-"])
def test_socket_of_an_odd_name_is_served(name: bytes, tmp_path: Path) -> None:
    path = os.path.join(os.fsencode(tmp_path), name)
    process = subprocess.Popen(
        [str(BALLOOND), "--socket", path], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert process.stderr is not None
        assert b"listening on" in process.stderr.readline()
        process.terminate()
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0
        assert b"Traceback" not in said
        assert list(tmp_path.iterdir()) == []
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_socket_of_another_kind_is_left_alone(kind: socket.SocketKind, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, kind) as other:
        other.bind(str(tmp_path / "s"))
        if kind == socket.SOCK_SEQPACKET:
            other.listen()
        run = balloond("--socket", str(tmp_path / "s"))

    assert run.returncode == 1
    assert "a running process listens there" in run.stderr
    assert (tmp_path / "s").is_socket()


def test_socket_that_another_has_put_in_its_place_is_left_at_the_end(
    start_daemon: StartDaemon,
) -> None:
    daemon = start_daemon()
    path = daemon.config.socket
    path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(str(path))
        daemon.stop()
        assert path.is_socket()


def command_line(pid: int) -> list[bytes]:
    """What ``ps -f`` shows of a process (proc(5))."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]


def test_ps_shows_what_each_process_is(daemon: Daemon, make_guest: MakeGuest) -> None:
    guest = attach(make_guest(), daemon)
    device, template = wait_for_device([guest], daemon, "vm1"), template_of(daemon.pid)

    assert command_line(device) == [b"balloon-vm1"]
    assert command_line(template) == [b"balloond-forks"]
    assert os.fsencode(daemon.config.socket) in command_line(daemon.pid)

    # Without the template the controller forks the next one, which looks the same.
    os.kill(template, signal.SIGKILL)
    os.kill(device, signal.SIGKILL)
    run([guest], lambda: any(r["event"] == "device-died" for r in daemon.records()))
    assert command_line(wait_for_device([guest], daemon, "vm1")) == [b"balloon-vm1"]
    assert os.fsencode(daemon.config.socket) in command_line(daemon.pid)


def test_socket_is_its_owners_alone(daemon: Daemon) -> None:
    assert daemon.config.socket.stat().st_mode & 0o777 == 0o600


@fault("output and log on a full disk")
def test_log_on_a_full_disk_does_not_stop_the_daemon(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with open("/dev/full", "w") as full:
        process = subprocess.Popen(
            [str(BALLOOND), "--socket", str(path)], stdout=subprocess.PIPE, stderr=full
        )
    try:
        assert process.stdout is not None
        assert b"Attach" in process.stdout.readline()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as vmm:
            vmm.connect(str(path))
            vmm.send(encode_request(FrontendRequest.GET_FEATURES))
            assert len(vmm.recv(64)) == 20
        process.terminate()
        assert process.wait(HANG_S) == 0
    finally:
        process.kill()
        process.communicate()


def test_soft_limit_of_descriptors_is_raised_to_the_hard_one(daemon: Daemon) -> None:
    soft, hard = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)

    assert soft == hard
