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
    MOST_ASIDE,
    MOST_SAMPLES,
    PRUNE_ROWS,
    SECONDS,
    VERSION,
    open_history,
    prune,
    write,
)
from balloon_daemon.virtio.balloon import StatTag
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


@fault("says figures that cannot be")
def test_figure_that_sqlite_cannot_hold_ends_no_history(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest, tmp_path: Path
) -> None:
    path = tmp_path / "h.db"
    daemon = start_daemon("--history", str(path), "--speed", "200")
    guest = make_guest()
    values = guest.driver.statistics.values
    more = {StatTag.AVAIL: (1 << 64) - 2}
    guest.driver.statistics.values = lambda: values() | more  # type: ignore[method-assign]  # this driver's
    guest.connect(str(daemon.config.socket))
    guest.bind()
    low_mem.set_low()
    run_until([guest], lambda: balloon_bytes(guest) == MAXIMUM)

    def samples() -> list[dict[str, Any]]:
        return [row for row in history(path, "--samples", "--vm", "vm1") if row["balloon"]]

    daemon.wait(samples, what="it is sampled")
    daemon.stop()
    assert {row["available"] for row in samples()} <= {None}
    assert facts(daemon, "history-ended") == []


def test_row_that_sqlite_cannot_hold_is_left_out_alone(tmp_path: Path) -> None:
    kept, _ = open_history(str(tmp_path / "h.db"))
    rows: list[tuple[str, list[object]]] = [
        ("events", [1e9, name, "decided", "yes"]) for name in ("one", "\udc80", "two")
    ]
    write(kept, rows)
    assert kept.execute("SELECT vm FROM events").fetchall() == [("one",), ("two",)]
    kept.close()


def made_history(path: Path, version: int = VERSION) -> None:
    """Makes a history of some 200 KiB."""
    made, _ = open_history(str(path))
    write(made, [("events", [1e9, "vm1", "decided", f"{n:400}"]) for n in range(500)])
    made.execute(f"PRAGMA user_version={version}")
    made.close()


def test_number_that_has_no_room_in_a_history_is_left_out_and_the_rest_is_kept(
    tmp_path: Path,
) -> None:
    # Statistics have 64 bits without a sign, and whoever has a guest chooses them.
    made, _ = open_history(str(tmp_path / "h.db"))
    most = (1 << 63) - 1
    sample = [1e9, "vm1", 1 << 30, 1, 2, most + 1, None, most]
    write(made, [("samples", sample), ("events", [1e9, "vm2", "decided", "…"])])

    (row,) = made.execute("SELECT vm, memory, available, held FROM samples")
    assert row == ("vm1", 1 << 30, None, most)
    assert made.execute("SELECT vm FROM events").fetchall() == [("vm2",)]
    made.close()


def damage(path: Path) -> bytes:
    """Overwrites pages of a history, not its header; returns what it has then."""
    torn = bytearray(path.read_bytes())
    torn[8192:16384] = bytes(range(256)) * 32
    path.write_bytes(torn)
    return bytes(torn)


@pytest.mark.parametrize("kind", ["version", "damage"])
@fault("the file of --history is damaged")
def test_history_that_cannot_be_used_is_renamed_and_named(
    kind: str, start_daemon: StartDaemon, tmp_path: Path
) -> None:
    path = tmp_path / "h.db"
    made_history(path, 7 if kind == "version" else VERSION)
    before = path.read_bytes() if kind == "version" else damage(path)
    (tmp_path / "h.db.damaged").write_text("an earlier one")

    daemon = start_daemon("--history", str(path))
    aside = daemon.wait(lambda: facts(daemon, "history-set-aside"), what="that is said")
    daemon.wait(lambda: history(path, "--samples"), what="a new one begins")
    daemon.stop()
    assert [said["ending"] for said in aside] == [".damaged.2"]
    assert (tmp_path / "h.db.damaged.2").read_bytes() == before
    assert (tmp_path / "h.db.damaged").read_text() == "an earlier one"
    if kind == "version":
        assert aside[0]["why"] == "it is of version 7, not 1"


@fault("the file of --history is damaged")
def test_no_damaged_history_is_overwritten_by_a_later_one(tmp_path: Path) -> None:
    path = tmp_path / "h.db"
    for _ in range(MOST_ASIDE):
        made_history(path, version=7)
        opened, aside = open_history(str(path))
        opened.close()
        assert aside.endswith(" it is of version 7, not 1")
        path.unlink()
    made_history(path, version=7)
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="remove those"):
        open_history(str(path))
    assert path.read_bytes() == before
    assert len(list(tmp_path.glob("*.damaged*"))) == MOST_ASIDE


def other_database(path: Path) -> sqlite3.Connection:
    """Another program's database, with the same version and a log that is not merged yet."""
    other = sqlite3.connect(path, isolation_level=None)
    other.executescript("PRAGMA journal_mode=WAL; PRAGMA user_version=1; CREATE TABLE t (a);")
    return other


def refused(cwd: Path, *options: str) -> str:
    """The line with which balloond and ``--check`` both refuse, and make nothing."""
    before = {each: each.lstat().st_mtime_ns for each in cwd.iterdir()}
    lines = set[str]()
    for check in ((), ("--check",)):
        done = subprocess.run(
            [ROOT / ".venv/bin/balloond", "--socket", cwd / "d.sock", *options, *check],
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode, done.stdout) == (2, "")
        lines.add(done.stderr)
    assert {each: each.lstat().st_mtime_ns for each in cwd.iterdir()} == before
    (line,) = lines
    return line


@fault("--history or --record names a file of something else")
def test_file_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter").write_text("a letter\n" * 1000)
    (tmp_path / "link").symlink_to("letter")
    (tmp_path / "new.db-wal").write_text("of another")
    (tmp_path / "own.db-lock").write_text("of another")
    other = other_database(tmp_path / "other.db")
    wrong = {
        "letter": "is there and no history of balloond's; name another file",
        "other.db": "is there and no history of balloond's; name another file",
        "link": "is a symbolic link; name the file itself",
        "new.db": "new.db-wal is there, of another database; name another file",
        "own.db": "own.db-lock is there and no lock of balloond's; name another file",
    }
    content = {each: each.read_bytes() for each in tmp_path.iterdir()}
    for name, why in wrong.items():
        assert refused(tmp_path, "--history", name) == f"balloond: --history {name}: {why}\n"
    assert {each: each.read_bytes() for each in tmp_path.iterdir()} == content
    other.close()


@fault("two balloonds have one file for --history or --record")
def test_two_balloonds_never_have_one_file(start_daemon: StartDaemon, tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    first = start_daemon("--history", str(files / "h.db"), "--record", str(files / "t"))
    first.wait(lambda: history(files / "h.db", "--samples"), what="it begins")
    node = (files / "t").stat().st_ino
    for flag, name, does in (
        ("--history", "h.db", "keeps its history there"),
        ("--record", "t", "writes it"),
    ):
        done = subprocess.run(
            [ROOT / ".venv/bin/balloond", "--socket", tmp_path / "2.sock", flag, files / name],
            capture_output=True,
            text=True,
            timeout=60,
        )
        mistake = f"another balloond that runs {does}; name another file"
        assert done.stderr == f"balloond: {flag} {files / name}: {mistake}\n"
        assert done.returncode == 2
    assert (files / "t").stat().st_ino == node
    assert not (files / "t.1").exists()
    first.stop()
    again = start_daemon("--history", str(files / "h.db"), "--record", str(files / "t"))
    again.stop()
    assert (files / "t.1").stat().st_ino == node


@pytest.mark.parametrize("name", ["h.db", "h.db-wal", "h.db-lock"])
@fault("two balloonds have one file for --history or --record")
def test_trace_and_history_in_one_file_are_refused(name: str, tmp_path: Path) -> None:
    line = refused(tmp_path, "--record", name, "--history", "h.db")
    assert line == f"balloond: --record and --history would both write {name}; name another file\n"


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
    for _ in range(2 * MOST_SAMPLES // PRUNE_ROWS):
        write(made, [sample_at(now_s, "a-virtual-machine")] * PRUNE_ROWS)
        prune(made)
    (count,) = made.execute("SELECT count(*) FROM samples").fetchone()
    made.close()
    assert count == MOST_SAMPLES
    assert path.stat().st_size < 5 << 20


Row = tuple[str, list[object]]


def sample_at(at_s: float, vm: str = "vm1") -> Row:
    return "samples", [at_s, vm, 1 << 34, 1 << 33, 1 << 33, 1 << 33, None, 1 << 34]


def event_at(at_s: float, message: str) -> Row:
    return "events", [at_s, "vm1", "decided", message]


def kept(history: sqlite3.Connection) -> tuple[list[float], list[str]]:
    """The samples' times and the events' messages, after what is too old was deleted."""
    prune(history)
    times = [at_s for (at_s,) in history.execute("SELECT at_s FROM samples ORDER BY rowid")]
    said = [said for (said,) in history.execute("SELECT message FROM events ORDER BY rowid")]
    return times, said


DAY_BEFORE = [2e9 + 60 * minute for minute in range(24 * 60 + 1)]
"""A sample a minute for a day."""


def test_rows_older_than_a_day_go(tmp_path: Path) -> None:
    made, _ = open_history(str(tmp_path / "h.db"))
    start_s = DAY_BEFORE[0]
    earlier = [sample_at(start_s - 60), event_at(start_s - 1, "too old")]
    write(made, [*earlier, *map(sample_at, DAY_BEFORE), event_at(start_s + 1, "kept")])
    assert kept(made) == (DAY_BEFORE, ["kept"])
    made.close()


@fault("wall clock jumps")
@pytest.mark.parametrize("by_s", [4 * SECONDS, 30 * 365 * SECONDS, -2 * SECONDS, -1e9])
def test_wall_clock_that_jumps_and_comes_back_deletes_nothing_of_the_last_day(
    by_s: float, tmp_path: Path
) -> None:
    made, _ = open_history(str(tmp_path / "h.db"))
    # Twelve hours, ten minutes by a clock that is wrong, and ten hours by the right one again.
    before, wrong, after = DAY_BEFORE[:720], DAY_BEFORE[720:730], DAY_BEFORE[730:1330]
    jumped = [at_s + by_s for at_s in wrong]
    write(made, [*map(sample_at, before), event_at(before[-1], "before")])
    assert kept(made) == (before, ["before"])
    write(made, [*map(sample_at, jumped), event_at(jumped[-1], "wrong")])
    assert kept(made) == ([*before, *jumped], ["before", "wrong"])
    write(made, [*map(sample_at, after), event_at(after[-1], "after")])
    assert kept(made) == ([*before, *jumped, *after], ["before", "wrong", "after"])
    # A day later all that is gone, the rows with wrong times too.
    later = [at_s + 30 * 3600 for at_s in DAY_BEFORE]
    write(made, [*map(sample_at, later), event_at(later[-1], "later")])
    times, said = kept(made)
    assert times == later
    assert said == ["later"]
    made.close()


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


def shown(path: Path, *options: str, output: Path | None = None) -> tuple[int, str]:
    """The exit status of ``balloonctl history``, and its error."""
    command = [
        f"{ROOT}/.venv/bin/balloonctl",
        "history",
        str(path),
        "--since",
        "300000h",
        *options,
    ]
    with open(output or os.devnull, "w") as out:
        done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, timeout=60)
    return done.returncode, done.stderr


def test_balloonctl_says_whether_file_vm_or_output_is_at_fault(tmp_path: Path) -> None:
    path = tmp_path / "h.db"
    made_history(path)
    assert shown(path, "--vm", "vm1") == (0, "")
    mistake = f"balloonctl history: --vm nope: {path} has only vm1\n"
    assert shown(path, "--vm", "nope") == (2, mistake)
    full = "balloonctl: standard output: No space left on device; write it to another place\n"
    assert shown(path, output=Path("/dev/full")) == (1, full)
    missing = f"balloonctl history: {tmp_path}/none: No such file or directory; "
    missing += "name the file that balloond --history keeps, or have balloond keep one\n"
    assert shown(tmp_path / "none") == (1, missing)
    other_database(tmp_path / "other.db").close()
    other = f"balloonctl history: {tmp_path}/other.db: it is another database; is it of balloond"
    assert shown(tmp_path / "other.db") == (1, f"{other} --history?\n")


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (
            "DROP TABLE events; CREATE VIEW events AS "
            "SELECT 1e9 AS at_s, 'vm1' AS vm, 'decided' AS event, 'no' AS message",
            "it has other tables",
        ),
        ("CREATE TABLE more (a)", "it has other tables"),
        ("INSERT INTO events VALUES (1e9, 'vm1', 'decided', x'00')", "it is damaged"),
        ("INSERT INTO events VALUES (1e300, 'vm1', 'decided', 'no')", "it is damaged"),
        ("INSERT INTO events VALUES ('now', 'vm1', 'decided', 'no')", "it is damaged"),
        (
            "INSERT INTO events VALUES (1e9, 'vm1', 'decided', zeroblob(17 << 20))",
            "it is larger than 16 MiB",
        ),
    ],
)
@fault("a file that is given to balloonctl history or plot")
def test_history_of_somebody_elses_making_is_refused_in_one_line(
    script: str, why: str, tmp_path: Path
) -> None:
    path = tmp_path / "h.db"
    made_history(path)
    made = sqlite3.connect(path)
    made.executescript(script)
    made.close()
    line = f"balloonctl history: {path}: {why}; is it of balloond --history?\n"
    assert shown(path) == (1, line)


@fault("a file that is given to balloonctl history or plot")
def test_pages_that_lead_back_to_themselves_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "h.db"
    made_history(path)
    made = sqlite3.connect(path)
    made.execute("PRAGMA journal_mode=DELETE")
    (root,) = made.execute("SELECT rootpage FROM sqlite_master WHERE name='events'").fetchone()
    (page_bytes,) = made.execute("PRAGMA page_size").fetchone()
    made.close()
    content = bytearray(path.read_bytes())
    at = (root - 1) * page_bytes
    # https://sqlite.org/fileformat.html, "B-tree Pages": an interior page's cells begin with the
    # number of a page. Each of them gets that of the second one.
    assert content[at] == 5
    cells = int.from_bytes(content[at + 3 : at + 5], "big")
    places = [
        at + int.from_bytes(content[at + 12 + 2 * cell : at + 14 + 2 * cell], "big")
        for cell in range(cells)
    ]
    for place in places:
        content[place : place + 4] = content[places[1] : places[1] + 4]
    path.write_bytes(content)
    line = f"balloonctl history: {path}: it is damaged; is it of balloond --history?\n"
    assert shown(path) == (1, line)


@fault("a file that is given to balloonctl history or plot")
def test_no_file_is_read_as_a_history_but_a_regular_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    line = f"balloonctl history: {tmp_path}/pipe: is no file; name another\n"
    assert shown(tmp_path / "pipe") == (1, line)
    path = tmp_path / "h.db"
    made_history(path)
    os.mkfifo(tmp_path / "h.db-wal")
    line = f"balloonctl history: {path}: is no history: the file -wal beside it is none of its\n"
    assert shown(path) == (1, line)
