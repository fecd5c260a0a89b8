"""``balloonctl`` itself: its version, its help, and what ends it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from balloon_daemon import __version__, commands
from balloon_daemon.ctl.ask import flag_values
from balloon_daemon.ctl.main import build_parser, main

ROOT = Path(__file__).parents[2]
POLICY = ROOT / "policies" / "balloon_device.policy"

Output = pytest.CaptureFixture[str]

COMMANDS = [
    "", "status", "top", "explain", "events", "record", "reload", "release", "set", "demo",
    "seccomp", "seccomp check", "seccomp explain", "seccomp test", "seccomp compile",
    "seccomp run", "seccomp trace", "simulate", "judge", "history", "plot", "doctor",
    "install-service", "uninstall-service",
]  # fmt: skip


def ended(*argv: str) -> object:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    return caught.value.code


def balloonctl(*argv: str, stdout: int | None = subprocess.PIPE) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "balloon_daemon.ctl.main", *argv],
        cwd=ROOT,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stderr


def test_version_is_the_packages(capsys: Output) -> None:
    assert ended("--version") == 0
    assert capsys.readouterr().out == f"balloonctl {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_that_fits_80_columns(
    command: str, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert ended(*command.split(), "--help") == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: balloonctl {command}".rstrip())
    assert max(map(len, out.splitlines())) <= 80


def test_api_is_named_before_the_command_or_after_it() -> None:
    parser = build_parser()
    for argv in (["--api", "/a", "status"], ["status", "--api", "/a"], ["--api", "/a", "doctor"]):
        assert parser.parse_args(argv).api == Path("/a")
    assert parser.parse_args(["--api", "/a", "status", "--api", "/b"]).api == Path("/b")
    assert parser.parse_args(["status"]).api == Path("/run/balloond/api.sock")


INTERRUPTED_IMPORT = """
import os, signal, sys

class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupts())
from balloon_daemon.ctl.main import main
sys.exit(main(["status", "--api", "/none"]))
"""


@pytest.mark.parametrize(
    "module", ["balloon_daemon.ctl.ask.main", "balloon_daemon.ctl.plot", "h11"]
)
def test_ctrl_c_while_modules_are_loaded_is_no_traceback(module: str) -> None:
    command = [sys.executable, "-c", INTERRUPTED_IMPORT, module]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        ([], "balloonctl: the following arguments are required: COMMAND"),
        (["burn"], "balloonctl: there is no command 'burn'; there are status, top, "),
        (["stauts"], "balloonctl: there is no command 'stauts'; did you mean status? (usage"),
        (["--wibble"], "balloonctl: the following arguments are required: COMMAND"),
        (["seccomp"], "balloonctl seccomp: the following arguments are required: COMMAND"),
        (["seccomp", "burn"], "balloonctl seccomp: there is no command 'burn'; there are "),
        (["seccomp", "check"], "balloonctl seccomp check: the following arguments are required"),
        (["demo", "--wibble"], "balloonctl: unrecognized arguments: --wibble"),
        (["demo", "--speed", "x"], "balloonctl demo: argument --speed: invalid float value: 'x'"),
        (["set", "web", "-5M"], "balloonctl set: argument SIZE: '-5M' is not a size;"),
        (["set", "web", "1X"], "balloonctl set: argument SIZE: '1X' is not a size; write it like"),
        (["set", "web", "1.5"], "balloonctl set: argument SIZE: '1.5' has no unit; write 1.5G or"),
        (["set", "web"], "balloonctl set: the following arguments are required: SIZE"),
        (["set", "web", "1G", "--for", "10"], "balloonctl set: argument --for: '10' is no time;"),
        (
            ["set", "web", "1G", "--for", "25h"],
            "balloonctl set: argument --for: 25h is not from 1s",
        ),
        (["set", "web", "1G", "--for", "0.5s"], "balloonctl set: argument --for: 0.5s is not"),
        (["bu\x1brn\n"], "balloonctl: there is no command 'bu\\x1brn\\n'; "),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(
    argv: list[str], complaint: str, capsys: Output
) -> None:
    assert ended(*argv) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(complaint)
    assert told.err.endswith(" --help)\n")
    assert told.err.count("\n") == 1


def test_longest_time_is_the_apis() -> None:
    assert flag_values.MOST_HOLD_S == commands.MOST_HOLD_S


def test_output_to_a_full_disk_is_one_line_and_status_1() -> None:
    with open("/dev/full", "w") as full:
        told = balloonctl("seccomp", "explain", str(POLICY), stdout=full.fileno())
    assert told == (
        1, "balloonctl: standard output: No space left on device; write it to another place\n"
    )  # fmt: skip


@pytest.mark.parametrize("arguments", ["--help", "--version", "seccomp check --help"])
def test_help_on_a_full_disk_gives_no_traceback(arguments: str) -> None:
    with open("/dev/full", "w") as full:
        assert balloonctl(*arguments.split(), stdout=full.fileno()) == (0, "")


def test_mistake_that_cannot_be_told_on_a_full_disk_is_status_2_all_the_same() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "balloon_daemon.ctl.main", "--wibble"],
            cwd=ROOT,
            stderr=full,
            timeout=60,
        )
    assert done.returncode == 2


def test_output_that_nobody_reads_ends_it_quietly() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        assert balloonctl("seccomp", "explain", str(POLICY), stdout=writing) == (1, "")
    finally:
        os.close(writing)


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&-"])
@pytest.mark.parametrize("arguments", ["check", "compile -o -"])
def test_standard_stream_closed_is_no_mistake(arguments: str, closed: str) -> None:
    verb, *options = arguments.split()
    program = [sys.executable, "-m", "balloon_daemon.ctl.main"]
    command = [*program, "seccomp", verb, str(POLICY), *options]
    done = subprocess.run(
        ["sh", "-c", f'"$@" {closed}', "sh", *command], cwd=ROOT, capture_output=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, b"")
