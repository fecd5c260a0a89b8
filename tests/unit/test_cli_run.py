"""What ``balloond`` says of a start that cannot be, and its exit status: before any fork."""

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from balloon_daemon.cli.printing import how_to_attach
from balloon_daemon.cli.run import main
from balloon_daemon.config.model import Config
from balloon_daemon.units import GIB
from tests.harness.faults import fault


@pytest.fixture(autouse=True)
def _limit_of_descriptors_stays() -> Iterator[None]:
    """A start raises it, for the process's whole life."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


Said = tuple[int, str, str]


def start(capfd: pytest.CaptureFixture[str], *args: str) -> Said:
    """Runs ``main`` in this process. Returns its exit status, and what it printed where."""
    status = main(args)
    return status, *capfd.readouterr()


def test_policy_file_that_is_not_there_is_one_line_and_status_2(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "none"
    assert start(capfd, "--policy", str(path)) == (
        2,
        "",
        f"balloond: policy file {path}: No such file or directory; name a file that there is\n",
    )  # fmt: skip


def test_policy_file_that_is_a_directory_is_one_line_and_status_2(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert start(capfd, "--policy", str(tmp_path)) == (
        2, "", f"balloond: policy file {tmp_path}: Is a directory; name a file in it\n"
    )  # fmt: skip


def test_name_of_a_policy_file_moves_no_cursor(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    status, out, err = start(capfd, "--policy", str(tmp_path / "a\n\x1b[2Jb"))
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert "\x1b" not in err


def test_mistakes_in_a_policy_file_are_all_told_with_their_places(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.policy"
    path.write_text("read: 1\nnosuchcall: 1\nmadvise: arg2 == MADV_REMOVED\n")

    status, out, err = start(capfd, "--policy", str(path))

    assert (status, out) == (2, "")
    assert f"{path}:2:1: " in err
    assert f"{path}:3:18: " in err
    assert err.count("^") >= 2


@fault("mistake in a policy file")
@pytest.mark.parametrize(("lines", "told"), [(5, 5), (6, 5), (40, 5)])
@pytest.mark.parametrize("dialect", ["python", "c"])
def test_of_many_mistakes_the_first_are_told_and_where_all_are_shown(
    dialect: str, lines: int, told: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "none.policy"
    path.write_text("nosuchcall: 1\n" * lines)

    status, out, err = start(capfd, "--policy", str(path), "--policy-dialect", dialect)

    option = "--dialect c " if dialect == "c" else ""
    command = f"balloonctl seccomp check {option}{path}"
    more = [f"balloond: and {lines - told} more ({command} shows all)"] if lines > told else []
    assert (status, out) == (2, "")
    assert err.count(f"{path}:") == told
    assert err.splitlines()[3 * told :] == more


def test_policy_file_is_read_in_the_dialect_that_was_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "python.policy"
    path.write_text("@default kill-process\nread: 1\n")
    options = ("--policy", str(path), "--low-mem-dir", str(tmp_path / "none"))

    _, _, python = start(capfd, *options)
    status, _, c = start(capfd, *options, "--policy-dialect", "c")

    assert python.startswith("balloond: low-memory directory ")
    assert c.startswith(f"{path}:1:1: minijail's C compiler has no @default")
    assert status == 2


def test_low_memory_directory_that_is_not_there_is_one_line_and_status_2(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "none"
    status, out, err = start(capfd, "--low-mem-dir", str(path))
    assert (status, out) == (2, "")
    assert err.startswith("balloond: ")
    assert f"{path}: No such file or directory" in err
    assert err.count("\n") == 1


def test_low_memory_directory_without_figures_fails_the_check_with_status_1(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "available").write_text("much\n")
    (tmp_path / "margin").write_text("400\n")
    path = tmp_path / "s"

    status, out, err = start(
        capfd, "--check", "--low-mem-dir", str(tmp_path), "--socket", str(path)
    )

    assert (status, out) == (1, "")
    assert "not a whole number" in err
    assert not path.exists()


@pytest.mark.parametrize(
    ("user", "complaint"),
    [
        ("nosuchuser", "there is no such user; create it or name another"),
        ("root", "a device must not run as root; name a user without rights"),
    ],
)
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, who alone changes a device's user")
def test_user_that_no_device_may_become_is_one_line_and_status_2(
    user: str, complaint: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert start(capfd, "--user", user) == (2, "", f"balloond: --user {user}: {complaint}\n")


@pytest.mark.parametrize("args", [(), ("--check",)])
def test_socket_whose_directory_is_not_there_is_one_line_and_status_1(
    args: tuple[str, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # A directory of the test's: the host's own memory figures come with files that stay open.
    host = ("--low-mem-dir", str(tmp_path))
    status, out, err = start(capfd, *args, *host, "--socket", "/nonexistent/s")
    assert (status, out) == (1, "")
    assert err.startswith("balloond: socket /nonexistent/s: there is no directory /nonexistent")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("vm_mem_bytes", "for_qemu", "for_crosvm"),
    [(None, "-m SIZE ", "--mem MIB "), (4 * GIB, "-m 4096M ", "--mem 4096 ")],
)
def test_how_to_attach_names_the_socket_and_the_size(
    vm_mem_bytes: int | None, for_qemu: str, for_crosvm: str
) -> None:
    text = how_to_attach(Config(socket=Path("/run/x.sock"), vm_mem_bytes=vm_mem_bytes))
    assert text.startswith("Attach a VM to /run/x.sock\n")
    assert for_qemu in text
    assert for_crosvm in text
    assert "--vhost-user balloon,socket=/run/x.sock" in text
    assert "path=/run/x.sock" in text
