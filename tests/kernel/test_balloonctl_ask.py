"""``balloonctl`` and a balloond that runs, or does not: what it prints, and its exit statuses."""

import contextlib
import grp
import json
import os
import pty
import signal
import socket
import subprocess
import tempfile
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from balloon_daemon.ctl.main import main
from balloon_daemon.fake_guest.machine import run
from tests.harness.api_schemas import check
from tests.harness.daemon import ROOT, Daemon
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.makers import SETTINGS, STEP, MakeGuest, StartDaemon
from tests.harness.needs import needs_root
from tests.harness.other_user import AS_NOBODY
from tests.harness.waiting import HANG_S, wait_until
from tests.harness.whole_vm import attach, balloon_bytes, facts

BALLOONCTL = str(ROOT / ".venv/bin/balloonctl")


@pytest.fixture
def api(tmp_path: Path) -> Path:
    return tmp_path / "api.sock"


@pytest.fixture
def squeezed(
    start_daemon: StartDaemon, make_guest: MakeGuest, low_mem: LowMemDir, api: Path
) -> Daemon:
    """A balloond that has taken two steps or more from its VM."""
    daemon = start_daemon("--api", str(api))
    guest = attach(make_guest(SETTINGS), daemon)
    run([guest], lambda: facts(daemon, "vm-attached") != [])
    low_mem.set_low()
    run([guest], lambda: balloon_bytes(guest) >= 2 * STEP)
    return daemon


def balloonctl(*arguments: str, before: tuple[str, ...] = ()) -> tuple[int, str, str]:
    done = subprocess.run(
        [*before, BALLOONCTL, *arguments], capture_output=True, text=True, timeout=HANG_S
    )
    return done.returncode, done.stdout, done.stderr


def test_status_is_a_table_of_the_vms_with_the_host_below(squeezed: Daemon, api: Path) -> None:
    status, out, err = balloonctl("status", "--api", str(api))
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split("  ")[0].split() == ["VM"]
    assert lines[1].split()[:3] == ["vm1", "vhost-user", "512M"]
    assert "\nHost: 0 B available, margin 100 MiB (chromeos); memory is LOW\n" in out
    assert " ago, vm1: low memory" in out


def test_status_in_a_terminal_of_80_columns_has_no_longer_line(
    squeezed: Daemon, api: Path
) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    done = subprocess.run([BALLOONCTL, "status", "--api", str(api)], stdout=theirs, check=True)
    os.close(theirs)
    text = b""
    try:
        while some := os.read(ours, 1 << 16):
            text += some
    except OSError:
        pass  # EIO: the other end is closed, and everything was read (pty(7)).
    os.close(ours)
    lines = text.decode().splitlines()
    assert done.returncode == 0
    assert lines[1].startswith("vm1 ")
    assert max(map(len, lines)) <= 80


def test_explain_tells_the_events_that_led_there(squeezed: Daemon, api: Path) -> None:
    status, out, err = balloonctl("explain", "vm1", "--api", str(api))
    assert (status, err) == (0, "")
    size, events = out.split("\n\nwhat led there:\n")
    assert size.startswith("vm1: VM of 512 MiB, balloon ")
    assert "\ngrows: " in size
    assert "\nshrinks: by a step in " in size
    assert "balloon grows to level 2/16, 32 MiB" in events


def test_json_is_what_balloond_answers(squeezed: Daemon, api: Path) -> None:
    for command, schema in (("status", "Status"), ("explain vm1", "Explanation")):
        status, out, _ = balloonctl(*command.split(), "--json", "--api", str(api))
        assert status == 0
        check(schema)(json.loads(out))
    status, out, _ = balloonctl("events", "vm1", "--json", "--api", str(api))
    for line in out.splitlines():
        check("Event")(json.loads(line))
        assert json.loads(line)["vm"] == "vm1"


def test_events_that_are_followed_come_one_by_one_until_balloond_ends(
    squeezed: Daemon, api: Path
) -> None:
    command = [BALLOONCTL, "events", "-f", "--api", str(api)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as follower:
        assert follower.stdout is not None
        assert follower.stderr is not None
        assert follower.stdout.readline().endswith(f"listening on {squeezed.config.socket}\n")
        os.kill(squeezed.pid, signal.SIGUSR1)
        lines = follower.stdout.readlines()
        assert any(line.endswith(" SIGUSR1: ending\n") for line in lines)
        assert follower.stderr.read().startswith(f"balloonctl: balloond at {api} has ended the")
    assert follower.returncode == 3


@pytest.mark.parametrize("command", ["explain none", "events none", "events none -f"])
def test_vm_that_there_is_not_is_a_mistake_of_the_users(
    command: str, squeezed: Daemon, api: Path
) -> None:
    assert balloonctl(*command.split(), "--api", str(api)) == (
        2,
        "",
        "balloonctl: there is no VM none; balloonctl status names all\n",
    )


@pytest.mark.parametrize("command", ["status", "top", "explain web", "events", "events -f"])
def test_no_balloond_is_said_with_what_to_do(command: str, tmp_path: Path) -> None:
    path = tmp_path / "none"
    assert balloonctl(*command.split(), "--api", str(path)) == (
        3,
        "",
        f"balloonctl: no balloond listens at {path}; start it (as a service it does, by hand with "
        f"--api {path}), or name another socket (--api)\n",
    )


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (b"", "has ended the connection; perhaps it has ended, or something else listens there"),
        (b"220 mail\r\n", "has ended the connection; perhaps it has ended, or something else"),
        (b"HTTP/1.1 500 x\r\nContent-Length: 3\r\n\r\nbad", "answers with status 500 and no sent"),
        (b"HTTP/1.1 200 x\r\nContent-Length: 9\r\n\r\n{", "has ended the connection; perhaps"),
    ],
)
def test_something_else_that_listens_there_is_no_traceback(
    answer: bytes, complaint: str, tmp_path: Path
) -> None:
    path = tmp_path / "other.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        with subprocess.Popen(
            [BALLOONCTL, "status", "--api", str(path)], stderr=subprocess.PIPE, text=True
        ) as client:
            assert client.stderr is not None
            theirs, _ = listener.accept()
            with theirs:
                theirs.recv(1 << 16)
                theirs.sendall(answer)
            told = client.stderr.read()
    assert client.returncode == 3
    assert told.startswith(f"balloonctl: balloond at {path} {complaint}")
    assert told.count("\n") == 1


NESTED = b"[" * 100_000
ANSWERS = [
    NESTED,
    b'{"error":' + NESTED,
    b"no JSON",
    b"\xff",
    b"[]",
    b'"text"',
    b"null",
    b'{"vms":1,"host":[],"not_driven":{}}',
    b'{"vms":[{}],"host":{},"vm":{},"events":[{}],"changed":7}',
    b'{"vms":[[]],"host":null,"vm":null,"events":null,"changed":null,"time":"never"}',
    b"9" * 5000,
]
"""Answers that balloond never gives."""

COMMANDS = [
    "status",
    "top",
    "explain web",
    "events",
    "events -f",
    "reload",
    "release",
    "set web 1G",
    "pause web",
    "resume",
    "reclaim 1G",
    "reserve 1G",
    "reserve 1G --json",
    "unreserve",
]


@pytest.fixture
def answering(tmp_path: Path) -> Iterator[Callable[[int, bytes], Path]]:
    """Makes a socket at which whatever is asked is answered with a status and a body."""
    with ExitStack() as stack:

        def answering(status: int, body: bytes) -> Path:
            path = tmp_path / "other.sock"
            listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            listener.bind(str(path))
            listener.listen()
            head = f"HTTP/1.1 {status} x\r\nContent-Length: {len(body) + 1}\r\n\r\n".encode()

            def serve() -> None:
                with contextlib.suppress(OSError):  # The listener is shut down.
                    while True:
                        theirs, _ = listener.accept()
                        with theirs:
                            theirs.recv(1 << 16)
                            theirs.sendall(head + body + b"\n")

            thread = threading.Thread(target=serve)
            thread.start()
            stack.callback(thread.join)
            stack.callback(listener.shutdown, socket.SHUT_RDWR)
            return path

        yield answering


@pytest.mark.parametrize("answer", ANSWERS, ids=range(len(ANSWERS)))
@pytest.mark.parametrize("command", COMMANDS)
def test_answer_that_is_none_of_balloonds_is_one_line(
    command: str,
    answer: bytes,
    answering: Callable[[int, bytes], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = answering(200, answer)
    assert main([*command.split(), "--api", str(path)]) == 3
    assert capsys.readouterr().err == (
        f"balloonctl: what listens at {path} answers otherwise than balloond; name its socket "
        "(--api)\n"
    )


@pytest.mark.parametrize("answer", ANSWERS, ids=range(len(ANSWERS)))
def test_refusal_that_is_none_of_balloonds_is_one_line(
    answer: bytes, answering: Callable[[int, bytes], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = answering(409, answer)
    assert main(["status", "--api", str(path)]) == 3
    told = f"balloonctl: balloond at {path} answers with status 409 and no sentence\n"
    assert capsys.readouterr().err == told


@pytest.mark.parametrize("answer", ANSWERS, ids=range(len(ANSWERS)))
def test_doctor_says_that_what_answers_is_not_balloond(
    answer: bytes, answering: Callable[[int, bytes], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = answering(200, answer)
    main(["doctor", "--json", "--api", str(path)])
    told = json.loads(capsys.readouterr().out)
    assert told["not_asked"].startswith(f"what listens at {path} answers otherwise than balloond")


@needs_root
@pytest.mark.parametrize(
    ("group", "mode", "complaint"),
    [
        (0, 0o660, "you may not connect to {path}: only root may; use sudo\n"),
        (
            grp.getgrnam("daemon").gr_gid,
            0o660,
            "you may not connect to {path}: root may, and members of the group daemon; use sudo",
        ),
        (
            0,
            0o666,
            "you may not ask: only root, the user that balloond runs as, and members of the ",
        ),
    ],
)
def test_who_may_not_ask_is_told_so(
    group: int, mode: int, complaint: str, start_daemon: StartDaemon
) -> None:
    with tempfile.TemporaryDirectory(prefix="balloond-test-") as name:
        os.chmod(name, 0o711)
        path = Path(name, "api.sock")
        start_daemon("--api", str(path))
        os.chown(path, -1, group)
        os.chmod(path, mode)
        # It must still be able to read this checkout, wherever that is.
        search = ["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]
        told = balloonctl("status", "--api", str(path), before=("setpriv", *AS_NOBODY, *search))
        assert told[:2] == (4, "")
        assert told[2].startswith("balloonctl: " + complaint.format(path=path))
        assert told[2].count("\n") == 1


def test_balloon_is_set_and_released_by_its_size_and_time(
    start_daemon: StartDaemon, make_guest: MakeGuest, api: Path
) -> None:
    daemon = start_daemon("--api", str(api))
    guest = attach(make_guest(SETTINGS), daemon)
    run([guest], lambda: facts(daemon, "vm-attached") != [])
    at = ("--api", str(api))

    assert balloonctl("release", *at) == (0, "nothing is taken from any VM\n", "")
    assert balloonctl("set", "vm1", "48M", "--for", "1.5h", *at) == (
        0,
        "vm1: its balloon is to be 48 MiB, and is 0 B now\n",
        "",
    )
    run([guest], lambda: balloon_bytes(guest) == 3 * STEP)
    (asked,) = facts(daemon, "size-asked")
    assert (asked["balloon_bytes"], asked["for_s"]) == (3 * STEP, 5400.0)
    assert balloonctl("release", "vm1", *at) == (0, "vm1: gets 48 MiB back\n", "")
    run([guest], lambda: balloon_bytes(guest) == 0)
    assert balloonctl("set", "vm1", "400M", *at) == (
        2,
        "",
        "balloonctl: the balloon of vm1 may be 256 MiB at most\n",
    )
    status, out, _ = balloonctl("set", "vm1", "0", "--json", *at)
    assert status == 0
    check("Told")(json.loads(out))


def test_paused_vm_gives_nothing_more_and_goes_on_once_it_is_resumed(
    squeezed: Daemon, api: Path
) -> None:
    at = ("--api", str(api))
    assert balloonctl("pause", "vm1", "--for", "1h", *at) == (
        0,
        "vm1: paused for 60 min, nothing more is taken\n",
        "",
    )
    wait_until(
        lambda: any(fact["reason"] == "paused" for fact in facts(squeezed, "decided")),
        what="low memory is seen, and nothing is taken",
    )
    level = facts(squeezed, "decided")[-1]["balloon_level"]
    assert "vm1: paused by an operator for 60 min more" in balloonctl("status", *at)[1]
    assert "an operator has paused it, for 60 min more" in balloonctl("explain", "vm1", *at)[1]
    assert balloonctl("pause", *at)[:2] == (
        0,
        "all VMs: paused for 10 min, nothing more is taken from any\n",
    )
    refused = "balloonctl: all VMs are paused; resume all of them, naming none\n"
    assert balloonctl("resume", "vm1", *at) == (2, "", refused)
    assert facts(squeezed, "decided")[-1]["balloon_level"] <= level

    status, out, _ = balloonctl("resume", "--json", *at)
    assert status == 0
    check("Pauses")(json.loads(out))
    wait_until(
        lambda: facts(squeezed, "decided")[-1]["reason"] == "low-memory",
        what="memory is taken again",
    )
    ended = [(fact.get("vm"), fact.get("uid")) for fact in facts(squeezed, "taking-resumed")]
    assert sorted(map(str, ended)) == sorted(map(str, [("vm1", os.getuid()), (None, os.getuid())]))
    assert balloonctl("pause", "vm2", *at)[0] == 2
