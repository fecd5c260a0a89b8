"""``balloonctl seccomp run`` and ``trace`` on real commands."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.waiting import HANG_S

ROOT = Path(__file__).parents[2]
POLICY = ROOT / "policies" / "balloon_device.policy"

pytestmark = pytest.mark.skipif(
    os.uname().machine != "x86_64", reason="programs are filtered at their entry on x86_64 only"
)


def seccomp(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "balloon_daemon.ctl.main", "seccomp", *argv],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )


def traced(tmp_path: Path, *command: str, start: str = "entry") -> str:
    path = tmp_path / "traced.policy"
    done = seccomp("trace", "--from", start, "-o", str(path), "--", *command)
    assert done.returncode == 0, done.stderr
    return str(path)


@pytest.mark.parametrize("start", ["entry", "exec"])
def test_run_under_its_own_trace_lives(tmp_path: Path, start: str) -> None:
    data = tmp_path / "data"
    data.write_text("seventeen\n")
    policy = traced(tmp_path, "cat", str(data), start=start)
    done = seccomp("run", "--from", start, policy, "--", "cat", str(data))
    assert (done.returncode, done.stdout, done.stderr) == (0, "seventeen\n", "")


def test_trace_is_minimal_and_a_call_less_is_killed_by_name(tmp_path: Path) -> None:
    path = Path(traced(tmp_path, "cat", "/dev/null"))
    rules = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    assert "openat: 1" in rules
    assert [rule for rule in rules if rule.startswith(("execve", "write", "mprotect"))] == []
    path.write_text("\n".join(rule for rule in rules if rule != "openat: 1") + "\n")
    done = seccomp("run", str(path), "--", "cat", "/dev/null")
    assert done.returncode == 128 + 31
    assert "was killed: openat(" in done.stderr
    assert f"{path} has no rule for openat" in done.stderr


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A directory where others may write, as /tmp."""
    directory = tmp_path / "shared"
    directory.mkdir()
    directory.chmod(0o1777)
    return directory


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("link", "it is a symbolic link"),
        ("link to nothing", "it is a symbolic link"),
        ("other name", "it is another user's, or has another name"),
        ("fifo", "it is a FIFO"),
    ],
)
def test_trace_writes_to_no_file_that_somebody_has_put_in_its_place(
    kind: str, why: str, shared: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    place = shared / "traced.policy"
    if kind != "link to nothing":
        mine.write_text("mine\n")
    if kind == "other name":
        place.hardlink_to(mine)
    elif kind == "fifo":
        os.mkfifo(place)
    else:
        place.symlink_to(mine)
    for command in (
        ["trace", "-o", str(place), "--", "true"],
        ["compile", str(POLICY), "-o", str(place)],
    ):
        done = seccomp(*command)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == (
            f"balloonctl: {place}: {why}, and others may write to {shared} (mode 1777); name one "
            "in a directory of your own\n"
        )
    assert mine.exists() == (kind != "link to nothing")
    assert not mine.exists() or mine.read_text() == "mine\n"


def test_trace_is_written_anew_to_a_file_of_ones_own_wherever_it_is(
    shared: Path, tmp_path: Path
) -> None:
    (shared / "traced.policy").write_text("x" * 100_000)
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for place in (shared / "traced.policy", shared / "new", tmp_path / "link"):
        assert seccomp("trace", "-o", str(place), "--", "true").returncode == 0
        assert place.read_text().startswith("# What this used, from its entry on: true\n")
        assert "x" * 100 not in place.read_text()
    assert (tmp_path / "link").is_symlink()


def test_trace_names_arguments(tmp_path: Path) -> None:
    # ctypes is for its library: some Pythons have the socket module built in, and map no code.
    code = "import ctypes, socket; socket.socket(socket.AF_UNIX).close()"
    rules = Path(traced(tmp_path, sys.executable, "-S", "-c", code)).read_text().splitlines()
    assert "socket: arg0 == AF_UNIX" in rules
    assert [rule for rule in rules if rule.startswith("mmap: ") and "PROT_READ|PROT_EXEC" in rule]


def test_trace_follows_children_and_threads(tmp_path: Path) -> None:
    rules = Path(traced(tmp_path, "sh", "-c", "mkdir d; rmdir d; exit 0 & wait")).read_text()
    assert "\nmkdir: 1\n" in rules
    assert "\nrmdir: 1\n" in rules
    assert "\nexecve: 1\n" in rules


def test_trace_and_run_return_the_commands_status(tmp_path: Path) -> None:
    assert seccomp("trace", "--", "sh", "-c", "exit 7").returncode == 7
    assert seccomp("trace", "--", "sh", "-c", "kill -TERM $$").returncode == 128 + 15
    allow_all = tmp_path / "all.policy"
    allow_all.write_text("@denylist\nreboot: return EPERM\n")
    assert seccomp("run", str(allow_all), "--", "sh", "-c", "exit 9").returncode == 9


def test_run_shows_the_rule_that_killed(tmp_path: Path) -> None:
    path = tmp_path / "test.policy"
    rules = Path(traced(tmp_path, "cat", "/dev/null")).read_text()
    path.write_text(rules.replace("exit_group: 1", "exit_group: arg0 == 0; kill-process"))
    done = seccomp("run", str(path), "--", "cat", "/dev/null")
    assert done.returncode == 128 + 31
    assert "was killed: exit_group(0" in done.stderr
    assert "exit_group: arg0 == 0; kill-process\n                ^^^^" in done.stderr


def test_run_trap_is_reported_as_stopped(tmp_path: Path) -> None:
    path = tmp_path / "test.policy"
    rules = Path(traced(tmp_path, "cat", "/dev/null")).read_text()
    path.write_text(rules.replace("openat: 1", "openat: trap"))
    done = seccomp("run", str(path), "--", "cat", "/dev/null")
    assert done.returncode == 128 + 31
    assert done.stderr.count("was stopped: openat(") == 1


def test_run_names_the_guilty_thread_alone(tmp_path: Path) -> None:
    code = (
        "import os, threading\n"
        "threads = [threading.Thread(target=threading.Event().wait) for _ in range(3)]\n"
        "for thread in threads: thread.start()\n"
        "os.getppid()\n"
    )
    path = tmp_path / "test.policy"
    path.write_text("@denylist\ngetppid: return EPERM\n")
    allowed = seccomp("run", str(path), "--", sys.executable, "-S", "-c", code + "os._exit(3)")
    assert allowed.returncode == 3, allowed.stderr
    used = Path(traced(tmp_path, sys.executable, "-S", "-c", code + "os._exit(0)")).read_text()
    path.write_text(used.replace("\ngetppid: 1\n", "\n"))
    done = seccomp("run", str(path), "--", sys.executable, "-S", "-c", code + "os._exit(3)")
    assert done.returncode == 128 + 31
    assert done.stderr.count("was killed: ") == 1
    assert "was killed: getppid(" in done.stderr


def test_run_call_of_another_abi_is_said_so(tmp_path: Path) -> None:
    # syscall(0x40000000 | getpid)
    code = "import ctypes; ctypes.CDLL(None).syscall(ctypes.c_long(0x40000000 | 39))"
    path = tmp_path / "all.policy"
    path.write_text("@denylist\nreboot: return EPERM\n")
    done = seccomp("run", str(path), "--", sys.executable, "-S", "-c", code)
    assert done.returncode == 128 + 31
    assert "was killed: call 1073741863 of another ABI (x32)" in done.stderr


def test_run_policy_for_the_device_kills_a_shell_at_its_first_step() -> None:
    done = seccomp("run", str(POLICY), "--", "cat", "/dev/null")
    assert done.returncode == 128 + 31
    assert f"{POLICY} has no rule for" in done.stderr
