"""The fake guest as a process: its commands, its events, and how it ends."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from balloon_daemon.fake_guest.client import FakeGuestProcess
from balloon_daemon.units import MIB
from tests.harness.daemon import Daemon
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.waiting import HANG_S

MAXIMUM = 256 * MIB
PROGRAM = [sys.executable, "-m", "balloon_daemon.fake_guest"]

Start = Callable[..., FakeGuestProcess]


@pytest.fixture
def start(daemon: Daemon) -> Iterator[Start]:
    started: list[FakeGuestProcess] = []

    def begin(*options: str) -> FakeGuestProcess:
        where = ["--socket", str(daemon.config.socket), "--mem", "512M"]
        started.append(FakeGuestProcess([*where, *options]))
        return started[-1]

    yield begin
    for guest in started:
        guest.kill()


def test_guest_inflates_by_itself_and_its_blocks_can_be_seen_from_outside(
    start: Start, low_mem: LowMemDir
) -> None:
    guest = start("--touched", "64M", "--pinned", "8M", "--order", "random")
    before = guest.blocks_bytes()

    low_mem.set_low()
    status = guest.wait_status(lambda s: s["actual_bytes"] == MAXIMUM, "the whole balloon")

    assert before - guest.blocks_bytes() == 64 * MIB
    assert status["config_interrupts"] > 0
    assert guest.wait_event("inflated")["actual"] > 0
    check = guest.command("check")
    assert check["pages_checked"] >= 8 * MIB // 4096 - 64
    assert check["pages_corrupt"] == 0
    assert guest.quit() == 0


def test_every_command_answers(start: Start, low_mem: LowMemDir) -> None:
    guest = start("--touched", "32M")
    low_mem.set_low()
    guest.wait_status(lambda s: s["actual_bytes"] == MAXIMUM, "the whole balloon")

    assert guest.command("touch", bytes=MIB)["touched_bytes"] == MIB
    # With DEFLATE_ON_OOM Linux leaves the balloon in it.
    assert guest.command("stats")["MEMTOT"] == 512 * MIB
    assert guest.command("pause")["running"] is False
    assert guest.command("resume")["running"] is True
    assert guest.command("stop")["actual"] == 0
    assert guest.command("start")["running"] is True
    guest.wait_status(lambda s: s["actual_bytes"] == MAXIMUM, "the whole balloon again")
    assert guest.command("reboot")["running"] is True
    assert guest.command("disconnect")["connected"] is False
    assert guest.command("connect")["running"] is True
    assert guest.command("report-free-pages", block_pages=256)["blocks"] >= 0
    guest.wait_event("reported")
    assert guest.command("check")["pages_corrupt"] == 0


@pytest.mark.parametrize(
    ("command", "arguments", "complaint"),
    [
        ("jump", {}, "allowed are status, check"),
        ("touch", {}, "bytes: None is not a number"),
        ("touch", {"bytes": -1}, "-1 is not a number"),
        ("report-free-pages", {"block_pages": "many"}, "'many' is not a number"),
    ],
)
def test_command_that_makes_no_sense_is_refused_and_the_guest_goes_on(
    start: Start, command: str, arguments: dict[str, object], complaint: str
) -> None:
    guest = start()

    with pytest.raises(RuntimeError, match=complaint):
        guest.command(command, **arguments)

    assert guest.status()["connected"] is True


def test_daemon_killed_is_an_event_and_the_memory_stays(start: Start, daemon: Daemon) -> None:
    guest = start("--touched", "16M")

    daemon.kill()

    assert guest.wait_event("disconnected")["reason"]
    assert guest.command("check")["pages_checked"] == 16 * MIB // 4096
    with pytest.raises(RuntimeError, match=r"hung up|not connected"):
        guest.command("stop")


def test_guest_ends_with_its_stdin(daemon: Daemon) -> None:
    guest = subprocess.Popen(
        [*PROGRAM, "--socket", str(daemon.config.socket), "--mem", "64M"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert guest.stdin is not None
    assert guest.stdout is not None
    ready = json.loads(guest.stdout.readline().splitlines()[-1])

    guest.stdin.close()

    assert guest.wait(HANG_S) == 0
    assert ready["event"] == "bound"
    guest.stdout.close()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--mem", "4Q"], "'4Q' is not a size"),
        (["--queue-size", "3"], "queue size 3"),
        (["--features", "wings"], "unknown features wings"),
        (["--mem", "64M", "--touched", "65M"], "only"),
        (["--order", "/nowhere.npz"], "/nowhere.npz is not a trace"),
        (["--mem", "4095"], "not whole pages"),
    ],
)
def test_wrong_settings_are_refused_with_status_2(options: list[str], complaint: str) -> None:
    done = subprocess.run(
        [*PROGRAM, "--socket", "/nowhere", *options],
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )

    assert done.returncode == 2
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_no_daemon_is_said_in_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [*PROGRAM, "--socket", str(tmp_path / "nobody"), "--mem", "64M"],
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )

    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "No such file or directory" in done.stderr


def test_fresh_guest_holds_next_to_nothing_on_the_host(start: Start) -> None:
    guest = start()

    # Rings, buffers and the first statistics; nothing of the other 512 MiB.
    assert guest.blocks_bytes() < 128 * os.sysconf("SC_PAGESIZE")
