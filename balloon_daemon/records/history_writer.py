"""A program that keeps the last day of a host in an SQLite file, and does nothing else.

Runs by its file (``python -I -S history_writer.py FD PATH``), started by ``scribe.py``. It gets
JSON lines through the socket FD (``history.py`` makes them), and writes each burst of them in one
transaction. SQLite in the daemon would cost it 2 MiB, and each write may wait for a disk.

In WAL mode a file survives the death of its writer at any moment. A history that is damaged or of
another version is renamed, and a new one begun; the daemon has refused any file that is no
history. If the disk is full, the oldest half of the rows is deleted, and rows that still cannot be
written are dropped.
"""

import contextlib
import json
import os
import signal
import socket
import sqlite3
import sys

READY = b"ready\n"
VERSION = 1

APPLICATION_ID = 0x626C6E64
"""Marks a file as a history of balloond's: "blnd" (``history_file.APPLICATION_ID``)."""

HEADER_BYTES = 100
"""https://sqlite.org/fileformat.html, "The Database Header"."""

MOST_ASIDE = 5
"""How many damaged histories are kept under other names. If there are as many and another history
is damaged, this program ends, and no history is written."""

SECONDS = 24 * 3600
"""Of how much recorded time rows are kept."""

MOST_GAP_S = 3600
"""How much recorded time passes between two samples at most. The times of samples are the wall
clock's, which may jump by years, and back: if the ages of rows were taken from it, a jump by a day
would delete all rows. A time without balloond counts as so much, too."""

MOST_SAMPLES, MOST_EVENTS = 40_000, 10_000
"""The most rows, some 3 and 2 MiB; a host with more than 27 VMs has less than a day of samples."""

PRUNE_ROWS = 500
"""How many rows are written until old ones are deleted again."""

MOST_PAGES = 2048
"""The file's largest size, in pages of 4 KiB."""

CHUNK = 1 << 16

TABLES = """
CREATE TABLE samples (at_s REAL NOT NULL, vm TEXT NOT NULL, memory INTEGER,
    balloon INTEGER, target INTEGER, available INTEGER, margin INTEGER, held INTEGER);
CREATE TABLE events (at_s REAL NOT NULL, vm TEXT NOT NULL, event TEXT NOT NULL,
    message TEXT NOT NULL);
"""
"""The host's own samples have an empty name, and no memory, balloon, target and held. Sizes are
bytes."""

INSERTS = {
    "samples": "INSERT INTO samples VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    "events": "INSERT INTO events VALUES (?, ?, ?, ?)",
}


def open_history(path: str) -> tuple[sqlite3.Connection, str]:
    """Opens a history, or begins one.

    Returns:
        The history; and, where a damaged file was renamed, the new ending of its name and the
        reason, else "".

    Raises:
        sqlite3.Error, OSError: the history can neither be opened nor begun.
    """
    if not _is_ours(path):
        raise sqlite3.OperationalError("it is no history of balloond's")
    try:
        return _open(path), ""
    except sqlite3.OperationalError:
        raise  # The disk is full or the file may not be written: it need not be damaged.
    except sqlite3.DatabaseError as err:
        why = str(err)
    ending = _set_aside(path)
    return _open(path), f"{ending} {why}"


def _is_ours(path: str) -> bool:
    """Whether a file is absent, empty, or a history, damaged or not."""
    try:
        with open(path, "rb") as file:
            header = file.read(HEADER_BYTES)
    except FileNotFoundError:
        return True
    mark = APPLICATION_ID.to_bytes(4, "big")
    return not header or (header.startswith(b"SQLite format 3\0") and header[68:72] == mark)


def _set_aside(path: str) -> str:
    """Renames a history and SQLite's files beside it, to names that are free.

    Returns:
        How its name ends now.

    Raises:
        OSError: a file cannot be renamed.
    """
    for number in range(1, MOST_ASIDE + 1):
        ending = ".damaged" if number == 1 else f".damaged.{number}"
        if not any(os.path.lexists(path + ending + beside) for beside in ("", "-wal", "-shm")):
            break
    else:
        raise FileExistsError(
            f"it is damaged, as {MOST_ASIDE} before it that were renamed to end in .damaged; "
            "remove those"
        )
    # Rename the history itself last: if this program is killed before that, its next start finds
    # the damaged history again, and renames the rest.
    for beside in ("-wal", "-shm", ""):
        with contextlib.suppress(FileNotFoundError):
            os.rename(path + beside, path + ending + beside)
    return ending


def _open(path: str) -> sqlite3.Connection:
    history = sqlite3.connect(path, isolation_level=None)
    try:
        (tables,) = history.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables:
            _check(history)
        else:
            # Write the mark and the tables in one transaction: so a file that is not empty has
            # both. Use no journal file: it would stay beside an empty file if this program were
            # killed now.
            history.executescript(
                "PRAGMA journal_mode=MEMORY; BEGIN IMMEDIATE;"
                f"PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={VERSION};"
                f"{TABLES} COMMIT;"
            )
        for pragma in (
            "journal_mode=WAL",
            "synchronous=NORMAL",
            "wal_autocheckpoint=200",
            "journal_size_limit=1048576",
            f"max_page_count={MOST_PAGES}",
        ):
            history.execute(f"PRAGMA {pragma}")
    except BaseException:
        history.close()
        raise
    return history


def _check(history: sqlite3.Connection) -> None:
    """Raises sqlite3.DatabaseError: a history is damaged or of another version."""
    (version,) = history.execute("PRAGMA user_version").fetchone()
    if version != VERSION:
        raise sqlite3.DatabaseError(f"it is of version {version}, not {VERSION}")
    (found,) = history.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise sqlite3.DatabaseError("it is damaged")


def write(history: sqlite3.Connection, rows: list[tuple[str, list[object]]]) -> None:
    """Writes rows in one transaction, but for those that SQLite cannot hold.

    Raises:
        sqlite3.Error: the rows could not be written.
    """
    history.execute("BEGIN")
    try:
        for table, values in rows:
            # SQLite cannot hold half of a surrogate pair. One such row must not end the history of
            # all VMs.
            with contextlib.suppress(UnicodeEncodeError):
                history.execute(INSERTS[table], [_storable(value) for value in values])
        history.execute("COMMIT")
    except BaseException:
        if history.in_transaction:
            history.execute("ROLLBACK")
        raise


def _storable(value: object) -> object:
    """The value, or None for a number that SQLite has no room for.

    A guest's statistics have 64 bits without a sign. sqlite3 raises OverflowError for such a
    number, which would end the history of all VMs.
    """
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        return None
    return value


def prune(history: sqlite3.Connection, share: int = 1) -> None:
    """Deletes rows that are too old or too many.

    Args:
        history: the history.
        share: keep only the newest 1 / ``share`` of the rows.
    """
    history.execute("DELETE FROM samples WHERE rowid <= ?", (_last_old(history),))
    # Events have no age of their own, as many hours may pass between two of them. One whose time
    # is far after all samples is left from a time when the wall clock was wrong.
    history.execute(
        "DELETE FROM events WHERE at_s < (SELECT min(at_s) FROM samples)"
        " OR at_s > (SELECT max(at_s) FROM samples) + ?",
        (SECONDS,),
    )
    for table, most in (("samples", MOST_SAMPLES), ("events", MOST_EVENTS)):
        (rows,) = history.execute(f"SELECT count(*) FROM {table}").fetchone()
        newest = min(most, rows // share)
        history.execute(
            f"DELETE FROM {table} WHERE rowid <= (SELECT max(rowid) FROM {table}) - ?", (newest,)
        )


def _last_old(history: sqlite3.Connection) -> int:
    """The rowid of the newest sample that is too old, by the time that was recorded since; 0: none
    is too old."""
    age_s = 0.0
    later_s: float | None = None
    for rowid, at_s in history.execute("SELECT rowid, at_s FROM samples ORDER BY rowid DESC"):
        if later_s is not None:
            age_s += min(max(later_s - at_s, 0.0), MOST_GAP_S)
        if age_s > SECONDS:
            return int(rowid)
        later_s = at_s
    return 0


def keep(sock: socket.socket, history: sqlite3.Connection) -> str:
    """Writes the rows that come through a socket.

    Returns:
        Why no more is written; "": the daemon has closed the socket.
    """
    rest, since_pruned = b"", PRUNE_ROWS
    while chunk := sock.recv(CHUNK):
        *lines, rest = (rest + chunk).split(b"\n")
        rows = [json.loads(line) for line in lines]
        try:
            if since_pruned >= PRUNE_ROWS:
                since_pruned = 0
                prune(history)
            write(history, rows)
        except sqlite3.OperationalError:
            # The disk is full, or the file is as large as it may be.
            with contextlib.suppress(sqlite3.OperationalError):
                prune(history, share=2)
                history.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                write(history, rows)
        except sqlite3.DatabaseError as err:
            return str(err)
        since_pruned += len(rows)
    return ""


def main(fd: int, path: str) -> None:
    """Runs the program.

    Args:
        fd: the socket's number.
        path: the history's file.
    """
    # systemd and terminals send these signals to all processes of balloond at once. This program
    # ends after the daemon, when it has written all that the daemon has sent.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    # Descriptors that systemd has passed to balloond are VMs' and not for this program: a copy of
    # one would keep a guest's memory allocated.
    os.closerange(3, fd)
    os.closerange(fd + 1, os.sysconf("SC_OPEN_MAX"))
    null = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(null, stream)
    os.umask(0o077)
    with socket.socket(fileno=fd) as sock:
        sock.sendall(READY)  # before the file is touched: the daemon waits for this line
        try:
            history, aside = open_history(path)
            if aside:
                sock.sendall(f"aside {aside}\n".encode())
            why = keep(sock, history)
            history.close()
        except (sqlite3.Error, OSError) as err:
            why = str(err)
        with contextlib.suppress(OSError):
            sock.sendall(why.encode())


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
