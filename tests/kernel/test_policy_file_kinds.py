"""What a policy file may be: a regular file, and a pipe where the user names it; no device."""

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from balloon_daemon.errors import PolicyFileError
from balloon_daemon.seccomp.filter import compile_policy, read_policy
from balloon_daemon.seccomp.policy_file import SIZE_LIMIT, read_text
from tests.harness.daemon import BALLOOND
from tests.harness.faults import fault

BALLOONCTL = BALLOOND.with_name("balloonctl")
KALLSYMS = Path("/proc/kallsyms")
HANGS_S = 60

RULE = "read: 1\n"


@contextmanager
def beside(do: Callable[[threading.Event], None]) -> Iterator[None]:
    """Runs something in a thread as long as the block runs; it ends when its event is set."""
    ended = threading.Event()
    thread = threading.Thread(target=do, args=[ended])
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(HANGS_S)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A place with one of everything that is no file."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "directory").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "to-fifo").symlink_to("fifo")
    (tmp_path / "large").write_bytes(b"#" * (SIZE_LIMIT + 1))
    with (
        socket.socket(socket.AF_UNIX) as listener,
        open(tmp_path / "fifo", "r+b", buffering=0) as both_ends,
    ):
        listener.bind(str(tmp_path / "socket"))
        both_ends.write(b"#")  # its writer never ends: whoever reads on would wait
        yield tmp_path


KINDS = [
    ("fifo", "is a pipe, not a file"),
    ("to-fifo", "is a pipe, not a file"),
    ("/dev/zero", "is a character device, not a file"),
    ("/dev/null", "is a character device, not a file"),
    ("/dev/tty", "is a character device, not a file"),
    ("directory", "Is a directory"),
    ("/", "Is a directory"),
    ("socket", "is a socket, not a file"),
    ("loop", "Too many levels of symbolic links"),
    ("dangling", "No such file or directory"),
    ("none", "No such file or directory"),
    ("large", "is larger than 1 MiB"),
    ("/proc/self/mem", "Input/output error"),
    ("a" * 300, "File name too long"),
    ("nul\0byte", "no file has a NUL byte in its name"),
]


@fault("policy file, or what it includes")
@pytest.mark.parametrize("directive", ["@include", "@frequency"])
@pytest.mark.parametrize(("name", "told"), KINDS, ids=[name[:20] for name, _ in KINDS])
def test_what_a_policy_names_must_be_a_file(
    directive: str, name: str, told: str, folder: Path
) -> None:
    policy = folder / "main.policy"
    path = name if name.startswith("/") else f"./{name}"
    policy.write_text(f"{RULE}{directive} {path}\n")
    with pytest.raises(PolicyFileError) as caught:
        read_policy(policy)
    (problem,) = caught.value.problems
    assert (problem.line, problem.column) == (2, len(directive) + 2)
    assert problem.message.startswith("cannot read ")
    assert problem.message.endswith(told)


@fault("policy file, or what it includes")
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("/dev/zero", "is a character device, not a file or a pipe"),
        ("/dev/full", "is a character device, not a file or a pipe"),
        ("directory", "Is a directory; name a file in it"),
        ("socket", "is a socket, not a file or a pipe"),
        ("loop", "Too many levels of symbolic links"),
        ("none", "No such file or directory; name a file that there is"),
        ("large", "is larger than 1 MiB"),
    ],
)
@pytest.mark.parametrize("program", ["check", "explain", "compile", "balloond"])
def test_what_the_user_names_must_be_a_file_or_a_pipe(
    program: str, name: str, told: str, folder: Path
) -> None:
    path = str(folder / name)
    commands: dict[str, list[str | Path]] = {
        "check": [BALLOONCTL, "seccomp", "check", path],
        "explain": [BALLOONCTL, "seccomp", "explain", path],
        "compile": [BALLOONCTL, "seccomp", "compile", path, "-o", folder / "out"],
        "balloond": [BALLOOND, "--check", "--socket", folder / "s", "--policy", path],
    }
    done = subprocess.run(commands[program], capture_output=True, text=True, timeout=HANGS_S)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.endswith(f"{told}\n")
    assert done.stderr.count("\n") == 1
    assert path in done.stderr


def check(path: str, text: str | None = None, *, shell: str = "") -> str:
    command = [str(BALLOONCTL), "seccomp", "check", "--arch", "x86_64", path]
    if shell:
        command = ["bash", "-c", shell.format(BALLOONCTL)]
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, timeout=HANGS_S, check=True
    )
    # The second line says what libseccomp makes of it.
    return done.stdout.splitlines(keepends=True)[0].partition(": ")[2]


SOUND = "1 calls, 6 instructions for x86_64\n"


def test_policy_from_a_pipe_that_the_user_names_is_read() -> None:
    assert check("/dev/stdin", RULE) == SOUND
    assert check("/dev/fd/0", RULE) == SOUND


@fault("policy file, or what it includes")
@pytest.mark.parametrize(
    "written",
    [
        "{} seccomp check --arch x86_64 <(echo read: 1)",
        "{} seccomp check --arch x86_64 <(printf '# %s\\n' {{1..9999}}; echo read: 1)",
        "echo 'read: 1' | {} seccomp check --arch x86_64 /dev/stdin",
        "{} seccomp check --arch x86_64 /dev/stdin <<< 'read: 1'",
    ],
)
def test_policy_from_a_shell_is_read(written: str) -> None:
    assert check("", shell=written) == SOUND


def test_policy_from_a_fifo_that_the_user_names_is_waited_for(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    text = "# comment\n" * 9000 + RULE  # more than a pipe holds
    writer = threading.Thread(target=lambda: fifo.write_text(text))
    writer.start()
    assert read_text(str(fifo), named_by_user=True) == text
    writer.join(HANGS_S)


def test_reading_from_a_fifo_that_nobody_writes_to_can_be_interrupted(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with (
        subprocess.Popen(
            [BALLOONCTL, "seccomp", "check", fifo], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as reader,
        open(fifo, "wb"),
    ):  # opens once the reader has
        reader.send_signal(signal.SIGINT)
        _, errors = reader.communicate(timeout=HANGS_S)
    assert (reader.returncode, errors) == (130, b"")


@fault("policy file, or what it includes")
@pytest.mark.parametrize("endless", ["yes '# more'", "cat /dev/zero"])
def test_pipe_that_never_ends_is_read_up_to_the_limit(endless: str) -> None:
    done = subprocess.run(
        ["bash", "-c", f"{BALLOONCTL} seccomp check <({endless})"],
        capture_output=True,
        text=True,
        timeout=HANGS_S,
    )
    assert done.returncode == 2
    assert done.stderr.endswith(": cannot be read: is larger than 1 MiB\n")


def test_dev_null_on_the_command_line_is_an_empty_file() -> None:
    with pytest.raises(PolicyFileError, match="/dev/null:1:1: the file has no statement"):
        compile_policy(Path("/dev/null"))


def test_terminal_on_the_command_line_is_refused_unread() -> None:
    controller, terminal = os.openpty()
    try:
        with pytest.raises(OSError, match="is a character device, not a file or a pipe"):
            read_text(os.ttyname(terminal), named_by_user=True)
    finally:
        os.close(controller)
        os.close(terminal)


def test_file_of_the_largest_size_is_read(tmp_path: Path) -> None:
    path = tmp_path / "large.policy"
    path.write_text(RULE + "#" * (SIZE_LIMIT - len(RULE)))
    assert len(read_text(str(path))) == SIZE_LIMIT


def test_file_of_proc_without_a_size_is_read() -> None:
    assert os.stat("/proc/self/status").st_size == 0
    assert "Seccomp:" in read_text("/proc/self/status")


@pytest.mark.skipif(not KALLSYMS.exists(), reason="this kernel has no /proc/kallsyms")
def test_file_that_is_larger_than_its_size_says_is_read_up_to_the_limit() -> None:
    assert os.stat(KALLSYMS).st_size == 0
    with pytest.raises(OSError, match="is larger than 1 MiB"):
        read_text(str(KALLSYMS))


@fault("policy file, or what it includes")
def test_file_that_grows_while_it_is_read_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "grows"
    path.write_bytes(b"")

    def grow(ended: threading.Event) -> None:
        with open(path, "ab") as file:
            while not ended.is_set() and file.tell() < 64 * SIZE_LIMIT:
                file.write(b"#" * 100_000)
                file.flush()

    with beside(grow):
        outcomes = set()
        while "is larger than 1 MiB" not in outcomes:
            try:
                outcomes.add(str(len(read_text(str(path))) <= SIZE_LIMIT))
            except OSError as err:
                outcomes.add(str(err.strerror))
    assert outcomes <= {"True", "is larger than 1 MiB"}


@fault("policy file, or what it includes")
def test_file_that_turns_into_a_fifo_and_vanishes_is_never_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "turns"

    def turn(ended: threading.Event) -> None:
        while not ended.is_set():
            (tmp_path / "file").write_text(RULE)
            (tmp_path / "file").rename(path)
            os.mkfifo(tmp_path / "fifo")
            (tmp_path / "fifo").rename(path)
            path.unlink()

    with beside(turn):
        outcomes: set[str] = set()
        while not outcomes >= {RULE, "is a pipe, not a file", "No such file or directory"}:
            try:
                outcomes.add(read_text(str(path)))
            except OSError as err:
                outcomes.add(str(err.strerror))


def test_no_descriptor_is_left_open(folder: Path) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    for name in ("fifo", "large", "directory", "/dev/zero"):
        with pytest.raises(OSError, match=r"is|Is"):
            read_text(str(folder / name))
    (folder / "sound").write_text(RULE)
    assert read_text(str(folder / "sound")) == RULE
    assert sorted(os.listdir("/proc/self/fd")) == before
