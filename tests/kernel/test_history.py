"""``balloond --history``: a day of decisions and samples that outlives its writer."""

import json
import os
import resource
import signal
import sqlite3
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from balloon_daemon.records.history_writer import (
    MOST_SAMPLES,
    PRUNE_ROWS,
    SECONDS,
    VERSION,
    open_history,
    prune,
    write,
)
from tests.harness.daemon import ROOT, Daemon
from tests.harness.faults import fault
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.makers import MAXIMUM, MakeGuest, StartDaemon
from tests.harness.waiting import wait_until
from tests.harness.whole_vm import balloon_bytes, errors, facts, run_until, said


def writer_of(daemon: Daemon) -> int:
    """The process that writes the history."""
    children = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()
    (pid,) = [
        int(child)
        for child in children
        if b"history_writer.py" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]
    return pid


def history(path: Path, *options: str) -> list[dict[str, Any]]:
    """What ``balloonctl history`` shows."""
    done = subprocess.run(
        [ROOT / ".venv/bin/balloonctl", "history", path, "--json", *options],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


def squeeze(daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest) -> None:
    guest = make_guest()
    guest.connect(str(daemon.config.socket))
    guest.bind()
    low_mem.set_low()
    run_until([guest], lambda: balloon_bytes(guest) == MAXIMUM)


def test_history_has_the_logs_decisions_and_samples_and_goes_on_after_a_restart(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest, tmp_path: Path
) -> None:
    path = tmp_path / "h.db"
    first = start_daemon("--history", str(path), "--speed", "200", name="first")
    writer = writer_of(first)
    squeeze(first, low_mem, make_guest)
    first.wait(
        lambda: path.exists() and any(s["balloon"] for s in history(path, "--samples")),
        what="a balloon is sampled",
    )
    grown = [line for line in said(first, "decided") if "grows" in line]
    assert len(grown) == 16
    first.kill()
    wait_until(lambda: not Path(f"/proc/{writer}").exists(), what="its writer ends")
    kept = history(path, "--vm", "vm1")
    assert [row["message"] for row in kept if "grows" in row["message"]] == grown
    samples = history(path, "--samples")
    assert {row["vm"] for row in samples} == {"", "vm1"}
    assert (samples[0]["vm"], samples[0]["margin"]) == ("", 100 << 20)
    assert os.stat(path).st_mode & 0o777 == 0o600

    second = start_daemon("--history", str(path), "--speed", "200", name="second")
    second.wait(lambda: len(history(path, "--samples")) > len(samples), what="it goes on")
    second.stop()
    assert history(path)[: len(kept)] == kept
    assert facts(second, "history-set-aside", "history-ended") == []


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"no database at all\n" * 1000, "file is not a database"),
        ("version", "it is of version 7, not 1"),
        ("damage", "it is damaged"),
    ],
)
@fault("the file of --history is damaged")
def test_file_that_cannot_be_used_is_renamed_and_named(
    content: bytes | str, why: str, start_daemon: StartDaemon, tmp_path: Path
) -> None:
    path = tmp_path / "h.db"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        made, _ = open_history(str(path))
        write(made, [("events", [1e9, "vm1", "decided", f"{n:400}"]) for n in range(500)])
        made.execute(f"PRAGMA user_version={7 if content == 'version' else VERSION}")
        made.close()
    if content == "damage":
        torn = bytearray(path.read_bytes())
        torn[8192:16384] = bytes(range(256)) * 32
        path.write_bytes(torn)
    before = path.read_bytes()

    daemon = start_daemon("--history", str(path))
    aside = daemon.wait(lambda: facts(daemon, "history-set-aside"), what="that is said")
    daemon.wait(lambda: history(path, "--samples"), what="a new one begins")
    daemon.stop()
    assert len(aside) == 1
    assert (tmp_path / "h.db.damaged").read_bytes() == before
    if content != "damage":
        assert aside[0]["why"] == why


@fault("the file of --history cannot be written")
def test_writer_killed_in_the_middle_of_its_writes_leaves_a_whole_history(tmp_path: Path) -> None:
    path = tmp_path / "h.db"
    for kills in range(5):
        pid = os.fork()
        if pid == 0:
            made, _ = open_history(str(path))
            while True:
                write(made, [("events", [1e9, "vm1", "decided", "x" * 300])] * 50)
        wait_until(partial(has_rows, path, kills * 500 + 100), what="it writes")
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        opened, aside = open_history(str(path))
        assert aside == ""
        # Each transaction is there as a whole, or not at all.
        assert opened.execute("SELECT count(*) % 50 FROM events").fetchone() == (0,)
        opened.close()


def has_rows(path: Path, wanted: int) -> bool:
    if not path.exists():
        return False
    reader = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return bool(reader.execute("SELECT count(*) >= ? FROM events", (wanted,)).fetchone()[0])
    except sqlite3.OperationalError:
        return False  # it is not begun yet
    finally:
        reader.close()


@fault("the file of --history cannot be written")
def test_full_disk_and_a_dead_writer_hold_nobody_up(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest, tmp_path: Path
) -> None:
    path = tmp_path / "h.db"
    daemon = start_daemon("--history", str(path))
    daemon.wait(lambda: path.exists() and history(path, "--samples"), what="it begins")
    writer = writer_of(daemon)
    # To its writer the disk is full.
    resource.prlimit(writer, resource.RLIMIT_FSIZE, (16384, 16384))
    squeeze(daemon, low_mem, make_guest)
    assert Path(f"/proc/{writer}").exists()
    os.kill(writer, signal.SIGKILL)
    daemon.wait(lambda: facts(daemon, "history-ended"), what="that is said")
    daemon.stop()
    assert len(facts(daemon, "history-ended")) == 1
    assert errors(daemon) == []
    opened, aside = open_history(str(path))
    opened.close()
    assert aside == ""


def test_old_rows_go_and_the_file_stays_small(tmp_path: Path) -> None:
    path = tmp_path / "h.db"
    made, _ = open_history(str(path))
    now_s = 2e9
    sample = [now_s, "a-virtual-machine", 1 << 34, 1 << 33, 1 << 33, 1 << 33, None, 1 << 34]
    write(made, [("samples", [now_s - SECONDS - 1, *sample[1:]])] * 10)
    for _ in range(2 * MOST_SAMPLES // PRUNE_ROWS):
        write(made, [("samples", sample)] * PRUNE_ROWS)
        prune(made, now_s)
    (count, oldest) = made.execute("SELECT count(*), min(at_s) FROM samples").fetchone()
    made.close()
    assert (count, oldest) == (MOST_SAMPLES, now_s)
    assert path.stat().st_size < 5 << 20


@pytest.mark.parametrize(
    ("where", "mistake"),
    [
        ("none/h.db", "there is no such directory; make it, or name another"),
        (".", "is no file; name another"),
    ],
)
def test_place_where_no_history_can_be_kept_is_one_line_and_status_2(
    where: str, mistake: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [ROOT / ".venv/bin/balloond", "--socket", tmp_path / "d.sock", "--history", where],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (2, f"balloond: --history {where}: {mistake}\n")
