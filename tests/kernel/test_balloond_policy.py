"""``balloond`` and its policy file: what it says of the file."""

import subprocess
from pathlib import Path

import pytest

from tests.vm.daemon import BALLOOND


def check(tmp_path: Path, policy: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    named = ["--socket", str(tmp_path / "s"), "--policy", str(policy)]
    command = [str(BALLOOND), "--check", *named, *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


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
