"""libseccomp as the second judge: by ``balloond --check``, by ``balloonctl seccomp check``."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from balloon_daemon.ctl.seccomp.arches import load_arch
from balloon_daemon.seccomp.compiler import compile_bpf
from balloon_daemon.seccomp.filter import NATIVE_ARCH
from balloon_daemon.seccomp.flat_rules import flat_rules
from balloon_daemon.seccomp.judge import (
    Agreement,
    CannotSayError,
    NoOpinion,
    opinion_in_words,
)
from balloon_daemon.seccomp.libseccomp import compile_rules, second_opinion
from balloon_daemon.seccomp.machine import BpfMachine
from balloon_daemon.seccomp.parser import parse_policy
from balloon_daemon.seccomp.policy import ParsedPolicy
from tests.harness.daemon import BALLOOND
from tests.harness.faults import fault
from tests.harness.waiting import HANG_S

ROOT = Path(__file__).parents[2]
POLICY = ROOT / "policies" / "balloon_device.policy"
AARCH64 = ROOT / "tests" / "data" / "policies" / "balloon_device.aarch64.policy"
AGREES = re.compile(r"libseccomp \d+\.\d+\.\d+ agrees: 25 rules, \d,\d{3} calls")

pytestmark = pytest.mark.skipif(NATIVE_ARCH != "x86_64", reason="balloond runs on x86-64 alone")


def parse(text: str, arch: str = "x86_64") -> ParsedPolicy:
    return parse_policy(text, path="test.policy", arch=load_arch(arch), read=str)


def instead_of_pyseccomp(directory: Path, code: str) -> str:
    """Makes a module of that name. Returns a PYTHONPATH that finds it first."""
    (directory / "pyseccomp.py").write_text(code)
    return str(directory)


ALLOWS_ALL = """
KILL_PROCESS = 0x80000000
class Attr: ACT_BADARCH = 2
class Arg:
    def __init__(self, *_): pass
def system_arch(): return 0xC000003E
class SyscallFilter:
    def __init__(self, _action): pass
    def set_attr(self, *_): pass
    def add_rule_exactly(self, *_): pass
    def export_bpf(self, file): file.write(bytes([6, 0, 0, 0, 0, 0, 0xFF, 0x7F])); file.flush()
"""
"""A compiler whose programs allow every call."""


def check(tmp_path: Path, **env: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [str(BALLOOND), "--check", "--socket", str(tmp_path / "s")],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        env=os.environ | env,
    )


def seccomp_check(*argv: str, **env: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "balloon_daemon.ctl.main", "seccomp", "check", *argv],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        env=os.environ | env,
    )


# --- where libseccomp can say it ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "arch"), [(POLICY, "x86_64"), (AARCH64, "aarch64"), (AARCH64, "riscv64")]
)
def test_libseccomp_agrees_on_the_devices_policy(path: Path, arch: str) -> None:
    policy = parse(path.read_text(), arch)

    opinion = second_opinion(policy, compile_bpf(policy))

    assert isinstance(opinion, Agreement), opinion_in_words(opinion)


@pytest.mark.parametrize(
    "text",
    [
        "@denylist\nioctl: arg1 == TIOCSTI; return EPERM\n",
        "@default trap\nread: 1\n",
        "socket: arg0 == AF_UNIX && arg1 == SOCK_STREAM && arg2 == 0\n",
        "fcntl: arg1 == F_GETFD || arg1 == F_SETFD && arg2 == FD_CLOEXEC\n",
        "ioctl: { arg1 == 1; return 1, arg1 == 2; return 2, arg1 < 9; trap, allow }\n",
        "mmap: arg2 in ~PROT_EXEC || arg2 in ~PROT_WRITE\n",
        "lseek: arg1 < 0xffffffff00000000 && arg2 != 2\n",
        "read: log\nwrite: trace\nclose: user-notify\ndup: kill-thread\npoll: return 0\n",
    ],
)
def test_libseccomp_agrees_on_what_policies_often_say(text: str) -> None:
    policy = parse(text)

    opinion = second_opinion(policy, compile_bpf(policy))

    assert isinstance(opinion, Agreement), opinion_in_words(opinion)


def test_libseccomps_program_answers_every_call_number_as_ours_does() -> None:
    policy = parse(POLICY.read_text())
    ours = BpfMachine(compile_bpf(policy))
    theirs = BpfMachine(compile_rules(policy, flat_rules(policy)).bpf)
    values = [0, 1, 3, 4, 5, 7, 8, 9, 10, 14, 15, 16, 17, 0x10000, 0xFFFF, 0xFFFFFFFB, 2**32 - 1]
    values += [v | 2**32 for v in values] + [2**63, 2**64 - 1]
    for nr in [*range(512), 0x40000000, 2**32 - 1]:
        for value in values:
            call = [value] * 6
            assert ours.run(0xC000003E, nr, call) == theirs.run(0xC000003E, nr, call), (nr, value)


# --- where it cannot ----------------------------------------------------------------------------


@fault("no pyseccomp")
def test_rule_that_libseccomp_refuses_is_named() -> None:
    # The kernel takes errors up to 4095; libseccomp draws its line lower.
    policy = parse("read: 1\nwrite: return 4095\n")

    opinion = second_opinion(policy, compile_bpf(policy))

    assert isinstance(opinion, NoOpinion)
    assert re.fullmatch(
        r"libseccomp [\d.]+ refuses a rule for write: Invalid argument", opinion.why
    )


@fault("no pyseccomp")
def test_libseccomp_that_does_not_come_to_an_end_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs = "import signal\nsignal.pause()\n"
    monkeypatch.setenv("PYTHONPATH", instead_of_pyseccomp(tmp_path, hangs))
    policy = parse("read: 1\n")

    with pytest.raises(CannotSayError, match=r"libseccomp was not done within 0\.2 s"):
        compile_rules(policy, flat_rules(policy), within_s=0.2)


# --- the two commands ---------------------------------------------------------------------------


def test_check_says_that_libseccomp_agrees(tmp_path: Path) -> None:
    run = check(tmp_path)

    assert (run.returncode, run.stderr) == (0, "")
    (line,) = [line for line in run.stdout.splitlines() if line.startswith("judge")]
    assert AGREES.fullmatch(line.removeprefix("judge        "))


@fault("no pyseccomp")
def test_check_without_pyseccomp_says_so_in_a_line(tmp_path: Path) -> None:
    missing = instead_of_pyseccomp(tmp_path, "raise ImportError\n")

    run = check(tmp_path, PYTHONPATH=missing)

    assert (run.returncode, run.stderr) == (0, "")
    why = "neither pyseccomp nor libseccomp's own module (python3-seccomp) is there"
    assert f"\njudge        no second opinion: {why}\n" in run.stdout


@fault("our compiler")
def test_check_where_libseccomp_disagrees_one_line_status_1(tmp_path: Path) -> None:
    run = check(tmp_path, PYTHONPATH=instead_of_pyseccomp(tmp_path, ALLOWS_ALL))

    assert (run.returncode, run.stdout) == (1, "")
    assert re.fullmatch(
        rf"balloond: policy file {POLICY}: libseccomp [\d.]+ disagrees on \w+\(0x.*\) of "
        r"AUDIT_ARCH 0xc000003e: it says ALLOW, balloond's program KILL_PROCESS, and the policy "
        r"means KILL_PROCESS\n",
        run.stderr,
    )


@fault("our compiler")
def test_seccomp_check_where_libseccomp_disagrees_has_status_1(tmp_path: Path) -> None:
    env = {"PYTHONPATH": instead_of_pyseccomp(tmp_path, ALLOWS_ALL)}

    run = seccomp_check(str(POLICY), **env)
    told = json.loads(seccomp_check("--json", str(POLICY), **env).stdout)

    assert run.returncode == 1
    assert run.stdout == f"{POLICY}: 23 calls, 50 instructions for x86_64\n"
    assert "disagrees on" in run.stderr
    assert (told["ok"], told["files"][0]["ok"]) == (False, False)
    assert "disagrees on" in told["files"][0]["judge"]


def test_start_of_the_daemon_does_not_load_the_judge() -> None:
    code = (
        "import sys, balloon_daemon.cli.run\n"
        "sys.exit(any('judge' in name or 'libseccomp' in name for name in sys.modules))"
    )

    assert subprocess.run([sys.executable, "-c", code], timeout=HANG_S).returncode == 0
