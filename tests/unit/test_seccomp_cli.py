"""``balloonctl seccomp`` check, explain, test and compile, as typed."""

import json
import re
from pathlib import Path

import pytest

from balloon_daemon.ctl.main import main
from balloon_daemon.ctl.seccomp.arches import load_arch
from balloon_daemon.seccomp.filter import compile_policy
from balloon_daemon.seccomp.machine import BpfMachine

ROOT = Path(__file__).parents[2]
POLICY = ROOT / "policies" / "balloon_device.policy"
AARCH64 = ROOT / "tests" / "data" / "policies" / "balloon_device.aarch64.policy"

Output = pytest.CaptureFixture[str]


def policy_file(tmp_path: Path, text: str) -> str:
    path = tmp_path / "test.policy"
    path.write_text(text)
    return str(path)


def run(*argv: str) -> int:
    return main(["seccomp", *argv])


def test_check_sound_file_says_its_size(capsys: Output) -> None:
    assert run("check", "--arch", "x86_64", str(POLICY)) == 0
    size, judge = capsys.readouterr().out.splitlines()
    assert size == f"{POLICY}: 23 calls, 50 instructions for x86_64"
    assert re.fullmatch(rf"{POLICY}: libseccomp [\d.]+ agrees: 25 rules, \d,\d{{3}} calls", judge)


def test_check_file_of_another_architecture(capsys: Output) -> None:
    assert run("check", "--arch", "arm64", str(AARCH64)) == 0
    assert run("check", "--arch", "x86_64", str(AARCH64)) == 0
    assert run("check", "--arch", "aarch64", str(POLICY)) == 2
    assert "unknown system call poll on aarch64; did you mean ppoll?" in capsys.readouterr().err


def test_check_several_files_says_all_mistakes_of_all(tmp_path: Path, capsys: Output) -> None:
    bad = policy_file(tmp_path, "reed: 1\nwrite: arg9 == 1\n")
    missing = str(tmp_path / "missing.policy")
    assert run("check", "--arch", "x86_64", bad, missing, str(POLICY)) == 2
    out, err = capsys.readouterr()
    assert err == (
        f"{bad}:1:1: unknown system call reed on x86_64; did you mean read?\n"
        "    reed: 1\n    ^^^^\n"
        f"{bad}:2:8: arg9 does not exist: system calls have arg0 to arg5\n"
        "    write: arg9 == 1\n           ^^^^\n"
        f"{missing}: cannot be read: No such file or directory; name a file that there is\n"
    )
    assert out.startswith(str(POLICY))


def test_check_warns_and_accepts(tmp_path: Path, capsys: Output) -> None:
    path = policy_file(tmp_path, "read: arg0 == 1; return EPERM\n")
    assert run("check", path) == 0
    assert capsys.readouterr().err.startswith(f"{path}:1:18: warning: where the expression holds")


def test_check_json_is_one_object(tmp_path: Path, capsys: Output) -> None:
    bad = policy_file(tmp_path, "reed: 1\n")
    assert run("check", "--json", "--arch", "x86_64", str(POLICY), bad) == 2
    told = json.loads(capsys.readouterr().out)
    assert [told["ok"], [f["ok"] for f in told["files"]]] == [False, [True, False]]
    assert told["files"][0]["instructions"] == 50
    assert told["files"][1]["errors"] == [
        {
            "file": bad,
            "line": 1,
            "column": 1,
            "length": 4,
            "source": "reed: 1",
            "message": "unknown system call reed on x86_64; did you mean read?",
        }
    ]


def test_check_reads_included_files_from_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "common.policy").write_text("read: 1\n")
    path = policy_file(tmp_path, "@include /usr/share/policy/common.policy\nwrite: 1\n")
    assert run("check", path) == 2
    assert run("check", "--include-map", f"/usr/share/policy={tmp_path}", path) == 0


AMBIGUOUS = "socket: arg0 == AF_UNIX; return 1\nsocketpair: arg0 == AF_UNIX; return EPERM\n"


@pytest.mark.parametrize(
    ("dialect", "unix", "inet"),
    [("python", "ERRNO(1)", "KILL_PROCESS"), ("c", "ALLOW", "ERRNO(1)")],
)
def test_dialect_decides_what_a_return_means(
    dialect: str, unix: str, inet: str, tmp_path: Path, capsys: Output
) -> None:
    path = policy_file(tmp_path, AMBIGUOUS)
    for call in ("socket", "socketpair"):
        assert run("test", "--dialect", dialect, path, f"{call}(AF_UNIX)") == 0
        assert capsys.readouterr().out.startswith(unix)
        assert run("test", "--dialect", dialect, path, f"{call}(AF_INET)") == 0
        assert capsys.readouterr().out.startswith(inet)
    out = tmp_path / "out.bpf"
    compile_ = ["compile", "--arch", "x86_64", "--dialect", dialect, path, "-o", str(out)]
    assert run(*compile_) == 0
    verdicts = {"ALLOW": 0x7FFF0000, "ERRNO(1)": 0x50001, "KILL_PROCESS": 0x80000000}
    machine = BpfMachine(out.read_bytes())
    assert machine.run(0xC000003E, 41, [1]) == verdicts[unix]
    assert machine.run(0xC000003E, 41, [2]) == verdicts[inet]


@pytest.mark.parametrize("dialect", ["python", "c"])
@pytest.mark.parametrize("verb", ["check", "explain", "test", "compile", "pfc"])
def test_every_verb_warns_of_what_means_two_things(
    verb: str, dialect: str, tmp_path: Path, capsys: Output
) -> None:
    path = policy_file(tmp_path, AMBIGUOUS)
    argv = {
        "check": ["check", path],
        "explain": ["explain", path],
        "test": ["test", path, "read"],
        "compile": ["compile", path, "-o", str(tmp_path / "out")],
        "pfc": ["compile", path, "-o", str(tmp_path / "out"), "--format", "pfc"],
    }[verb]
    assert run(*argv, "--dialect", dialect) == 0
    told = capsys.readouterr()
    lines = (told.out + told.err).splitlines()
    (warning,) = [line for line in lines if "warning" in line]
    assert warning.startswith(f"{path}:1:26: warning: where the expression holds, the call ")
    assert "reads it the other way round" in warning
    assert warning.endswith("; also at line 2")


def test_c_dialect_reads_includes_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "main.policy").write_text("@include ./common.policy\n")
    (tmp_path / "common.policy").write_text("read: 1\n")
    monkeypatch.chdir(tmp_path)
    assert run("check", "--dialect", "c", "sub/main.policy") == 0
    assert run("check", "sub/main.policy") == 2
    (tmp_path / "sub" / "common.policy").symlink_to("../common.policy")
    assert run("check", "sub/main.policy") == 0
    assert "warning" not in capsys.readouterr().err
    (tmp_path / "sub" / "common.policy").unlink()
    (tmp_path / "sub" / "common.policy").write_text("write: 1\n")
    here, beside = "common.policy", "sub/common.policy"
    for dialect, first, second in (("c", here, beside), ("python", beside, here)):
        assert run("check", "--dialect", dialect, "sub/main.policy") == 0
        err = capsys.readouterr().err
        assert f"1:10: warning: {first} is read, and minijail's " in err
        assert f"compiler reads {second} instead" in err


def test_explain_says_what_is_allowed_and_what_is_missing(capsys: Output) -> None:
    assert run("explain", "--arch", "x86_64", str(POLICY)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "close              allowed, whatever its arguments" in lines
    assert (
        "madvise            allowed if arg2 is MADV_DONTDUMP (0x10), or arg2 is MADV_DONTNEED "
        "(0x4), or arg2 is MADV_REMOVE (0x9)"
    ) in lines
    assert (
        "mmap               allowed if arg2 has no bit outside 0xfffffffb, that is, not PROT_EXEC "
        "and none of the upper 32"
    ) in lines
    assert "Every other call is killed, with the whole process." in lines
    assert [line for line in lines if line.startswith("  brk ")] != []
    assert [line for line in lines if line.startswith("  futex ")] == []
    assert "Notably allowed:" not in lines


def test_explain_says_what_is_notably_allowed(tmp_path: Path, capsys: Output) -> None:
    path = policy_file(tmp_path, "@default trap\nexecve: 1\nptrace: return EPERM\ndup: return 0\n")
    assert run("explain", path) == 0
    out = capsys.readouterr().out
    assert "dup     not made, but returns 0, whatever its arguments" in out
    assert "ptrace  fails with EPERM, whatever its arguments" in out
    assert out[out.index("Notably allowed:") :].count("\n") == 2
    assert "Every other call is stopped with SIGSYS, which the process may handle." in out


def test_explain_denylist_says_what_it_lets_through(tmp_path: Path, capsys: Output) -> None:
    path = policy_file(tmp_path, "@denylist\nptrace: return EPERM\n")
    assert run("explain", path) == 0
    out = capsys.readouterr().out
    assert "Every other call is allowed." in out
    assert "Notably absent" not in out
    assert "  bpf" in out
    assert "  ptrace" not in out


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (
            "madvise(0, 4096, MADV_REMOVE)",
            [
                "ALLOW  madvise(0, 0x1000, MADV_REMOVE): allowed",
                f"{POLICY}:11:10: this decides",
                "    madvise: arg2 == MADV_DONTDUMP || arg2 == MADV_DONTNEED "
                "|| arg2 == MADV_REMOVE",
                "             ^^^^",
            ],
        ),
        (
            "mprotect(0, 0, PROT_EXEC)",
            [
                "KILL_PROCESS  mprotect(0, 0, PROT_EXEC): killed, with the whole process",
                "no rule for mprotect holds, so the default decides",
                f"{POLICY}:10:11: this does not hold",
                "    mprotect: arg2 in 0xfffffffb",
                "              ^^^^",
            ],
        ),
        (
            "openat(AT_FDCWD)",
            [
                "KILL_PROCESS  openat(0xffffffffffffff9c): killed, with the whole process",
                f"no rule of {POLICY} names openat, so the default decides",
            ],
        ),
        (
            "0x40000000()",
            [
                "KILL_PROCESS  call 1073741824(): killed, with the whole process",
                "it is a call of another ABI (x32), which no policy can allow",
            ],
        ),
    ],
)
def test_test_says_the_action_and_what_decides(call: str, told: list[str], capsys: Output) -> None:
    assert run("test", "--arch", "x86_64", str(POLICY), call) == 0
    assert capsys.readouterr().out.splitlines() == told


def test_test_says_errors_by_number_and_name(tmp_path: Path, capsys: Output) -> None:
    path = policy_file(tmp_path, "read: { arg0 == 1; return ENOSYS, allow }\n")
    assert run("test", path, "read(1)") == 0
    assert capsys.readouterr().out.startswith("ERRNO(38)  read(1): fails with ENOSYS\n")


def test_test_malformed_call_is_shown_with_a_caret(capsys: Output) -> None:
    assert run("test", str(POLICY), "madvise(0, MADV_REMOVED)") == 2
    assert capsys.readouterr().err == (
        "call:1:12: unknown constant MADV_REMOVED; did you mean MADV_REMOVE?\n"
        "    madvise(0, MADV_REMOVED)\n               ^^^^^^^^^^^^\n"
    )


def test_compile_bpf_writes_the_program(tmp_path: Path) -> None:
    out = tmp_path / "out.bpf"
    assert run("compile", str(AARCH64), "-o", str(out), "--arch", "aarch64") == 0
    assert out.read_bytes() == compile_policy(AARCH64, arch=load_arch("aarch64")).bpf
    assert BpfMachine(out.read_bytes()).run(0xC00000B7, 172) == 0x7FFF0000


def test_compile_default_can_be_given(tmp_path: Path) -> None:
    out = tmp_path / "out.bpf"
    given = ["compile", policy_file(tmp_path, "read: 1\n"), "-o", str(out), "--arch", "x86_64"]
    assert run(*given, "--default", "log") == 0
    assert BpfMachine(out.read_bytes()).run(0xC000003E, 1) == 0x7FFC0000


def test_compile_pfc_writes_what_is_read(
    tmp_path: Path, capsysbinary: "pytest.CaptureFixture[bytes]"
) -> None:
    path = policy_file(tmp_path, "read: arg0 in 3 && arg1 & 4 || arg2 > 1; return 9\n")
    assert run("compile", path, "-o", "-", "--format", "pfc", "--arch", "x86_64") == 0
    assert capsysbinary.readouterr().out.decode().splitlines()[3:16] == [
        "# filter for arch x86_64 (3221225534)",
        "if ($arch == 3221225534)",
        "  if ($syscall >= 0x40000000 && $syscall != 0xffffffff)",
        "    action KILL_PROCESS;",
        '  # filter for syscall "read" (0)',
        "  if ($syscall == 0)",
        "    if (($a0 & 0xfffffffffffffffc == 0) && $a1 & 0x4 || $a2 > 0x1)",
        "      action ERRNO(9);",
        "    action KILL_PROCESS;",
        "  # default action",
        "  action KILL_PROCESS;",
        "# invalid architecture action",
        "action KILL_PROCESS;",
    ]


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["check", "--arch", "vax", str(POLICY)], "no table of system calls for vax"),
        (["explain", "/nonexistent/x"], "balloonctl: /nonexistent/x: No such file or directory"),
        (["compile", str(POLICY), "-o", "/nonexistent/x"], "/nonexistent/x: No such file"),
        (["run", str(POLICY)], "no command was given"),
        (["run", str(POLICY), "--", "no-such-command"], "no-such-command: no such command"),
    ],
)
def test_operators_mistake_is_one_line_and_status_2(
    argv: list[str], told: str, capsys: Output
) -> None:
    assert run(*argv) == 2
    err = capsys.readouterr().err
    assert told in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "argv",
    [
        [], ["check"], ["check", "--default", "errno", "x"], ["burn"], ["check", "--dialect", "d"],
        ["check", "--include-map", "x", "y"], ["compile", "x"], ["trace", "--from", "here"],
    ],
)  # fmt: skip
def test_bad_flags_end_with_status_2(argv: list[str], capsys: Output) -> None:
    with pytest.raises(SystemExit) as ended:
        run(*argv)
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("balloonctl seccomp")
    assert "usage:" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("call", "shown"),
    [
        ("socket(1, 2)", "socket(AF_UNIX, 2)"),
        ("socket(16)", "socket(AF_NETLINK)"),
        ("fcntl(3, 1)", "fcntl(3, F_GETFD)"),
        ("fcntl(3, 0x406)", "fcntl(3, F_DUPFD_CLOEXEC)"),
        ("prctl(1, 15)", "prctl(PR_SET_PDEATHSIG, 0xf)"),
        ("prctl(38)", "prctl(PR_SET_NO_NEW_PRIVS)"),
        ("kill(2, 6)", "kill(2, SIGABRT)"),
        ("kill(2, 17)", "kill(2, SIGCHLD)"),
        ("kill(2, 2)", "kill(2, SIGINT)"),
        ("ioctl(0, 0x5401)", "ioctl(0, TCGETS)"),
        ("ioctl(0, 1)", "ioctl(0, 1)"),
        ("ptrace(0)", "ptrace(PTRACE_TRACEME)"),
        ("mmap(0, 1, 1, 2)", "mmap(0, 1, PROT_READ, MAP_PRIVATE)"),
        ("mprotect(0, 1, 3)", "mprotect(0, 1, PROT_READ|PROT_WRITE)"),
        ("mprotect(0, 1, 0)", "mprotect(0, 1, PROT_NONE)"),
        ("clone(0x1200011)", "clone(CLONE_CHILD_CLEARTID|CLONE_CHILD_SETTID|0x11)"),
    ],
)
def test_test_calls_an_argument_by_its_kernel_name(call: str, shown: str, capsys: Output) -> None:
    assert run("test", "--arch", "x86_64", str(POLICY), call) == 0
    assert capsys.readouterr().out.split("  ")[1].startswith(f"{shown}: ")
