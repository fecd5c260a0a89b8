"""``balloond`` and its policy file: whose reading counts, and what it says of the file."""

import subprocess
from pathlib import Path

import pytest

from tests.harness.daemon import BALLOOND
from tests.harness.faults import fault
from tests.harness.makers import StartDaemon

SHIPPED = Path(__file__).parents[2] / "policies" / "balloon_device.policy"
RETURN = "madvise: arg2 == MADV_REMOVE || arg2 == MADV_DONTNEED; return EPERM"
"""Lets a device give memory back in one dialect, and forbids just that in the other."""


@pytest.fixture
def ambiguous(tmp_path: Path) -> Path:
    """The shipped policy with one line that means two things."""
    lines = [RETURN if li.startswith("madvise") else li for li in SHIPPED.read_text().splitlines()]
    path = tmp_path / "ambiguous.policy"
    path.write_text("\n".join(lines) + "\n")
    return path


def check(tmp_path: Path, policy: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    named = ["--socket", str(tmp_path / "s"), "--policy", str(policy)]
    command = [str(BALLOOND), "--check", *named, *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@fault("policy file that minijail's two compilers read differently")
def test_dialect_decides_what_a_device_may(tmp_path: Path, ambiguous: Path) -> None:
    in_c = check(tmp_path, ambiguous, "--policy-dialect", "c")
    assert in_c.returncode == 0, in_c.stderr
    for options in ((), ("--policy-dialect", "python")):
        in_python = check(tmp_path, ambiguous, *options)
        assert in_python.returncode == 1
        assert in_python.stderr.endswith("gave back: Operation not permitted\n")


@fault("policy file that minijail's two compilers read differently")
@pytest.mark.parametrize(
    ("dialect", "first"), [("c", "the call is allowed"), ("python", "the call fails with")]
)
def test_check_warns_of_a_line_that_means_two_things(
    dialect: str, first: str, tmp_path: Path, ambiguous: Path
) -> None:
    warning = check(tmp_path, ambiguous, "--policy-dialect", dialect).stderr.splitlines()[0]
    assert warning.startswith(f"{ambiguous}:11:56: warning: where the expression holds, {first}")
    assert "reads it the other way round" in warning


@fault("policy file that minijail's two compilers read differently")
@pytest.mark.parametrize("dialect", ["c", "python"])
def test_log_warns_of_a_line_that_means_two_things(
    dialect: str, ambiguous: Path, start_daemon: StartDaemon
) -> None:
    daemon = start_daemon("--policy", str(ambiguous), "--policy-dialect", dialect)
    daemon.wait(
        lambda: any(r["event"] == "listening" for r in daemon.records()),
        deadline_s=60,
        what="it listens",
    )
    (warning,) = [r for r in daemon.records() if r["event"] == "policy-file-warning"]
    assert warning["level"] == "warning"
    assert warning["problem"].startswith(f"{ambiguous}:11:56: where the expression holds, ")
    assert "reads it the other way round" in warning["problem"]


def test_policy_of_a_dialect_that_it_is_not_written_in_is_refused(tmp_path: Path) -> None:
    policy = tmp_path / "lists.policy"
    policy.write_text("read: { arg0 == 1, return EPERM }\n")
    run = check(tmp_path, policy, "--policy-dialect", "c")
    assert run.returncode == 2
    assert run.stderr.startswith(f"{policy}:1:7: minijail's C compiler has no lists of filters")


@fault("policy file nested, long or large beyond measure")
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"read: arg0 == " + b"(" * 495 + b"1" + b")" * 495, "1:79: parentheses are nested"),
        (b"read: arg" + b"9" * 5000 + b" == 1", "1:7: arg9"),
        (b"@include ./a\0b\n", "1:10: cannot read"),
        (b"@include /dev/zero\n", "1:10: cannot read /dev/zero: is a character device"),
        (b"read\xff: 1\n", "1:5: byte 0xff is not part of the language"),
        (b"\x1b[31mread: 1\n", "1:1: '\\x1b' is not part of the language"),
        (b"read: 1\n" * 100_000, "2:5: read was already decided without a condition"),
    ],
)
def test_no_policy_file_is_a_traceback(content: bytes, told: str, tmp_path: Path) -> None:
    policy = tmp_path / "odd.policy"
    policy.write_bytes(content)
    run = check(tmp_path, policy)
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr.startswith(f"{policy}:{told}")
    assert "Traceback" not in run.stderr
    assert len(run.stderr) < 100_000
    assert all(c.isprintable() or c in "\n\t" for c in run.stderr)
