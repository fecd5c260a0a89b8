"""Reads the file that ``balloond --history`` keeps.

The file may be somebody else's, such as one that came with a report of a fault. SQLite runs what a
database has in views, and a damaged tree of pages may have no end: so a file is read only if it
is regular and no larger than a history, if it is whole, and if it has a history's tables and
nothing else.

Source: https://sqlite.org/security.html, "Untrusted SQLite Database Files".
"""

import errno
import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from balloon_daemon.errors import printable

VERSION, APPLICATION_ID = 1, 0x626C6E64
"""The same values as in ``records/history_writer.py``, which writes them into the file."""

MOST_BYTES, MOST_WAL_BYTES = 16 << 20, 256 << 20
"""The largest history that is read (``balloond`` keeps 8 MiB); and the largest write-ahead log
beside it, which grows for as long as another program reads the history."""

MOST_S = 1 << 37
"""No time of a history is later than the year 6325: later ones have no date on every platform."""

PLACES = (Path("/run/balloond/history.db"), Path("/var/lib/balloond/history.db"))
"""The paths that docs/history.md recommends: under the shipped unit, and by hand."""

WHERE = f"the first that exists of {' and '.join(map(str, PLACES))}"

Row = dict[str, float | str | None]

TABLES = {
    "events": {
        "at_s": "REAL NOT NULL",
        "vm": "TEXT NOT NULL",
        "event": "TEXT NOT NULL",
        "message": "TEXT NOT NULL",
    },
    "samples": {"at_s": "REAL NOT NULL", "vm": "TEXT NOT NULL"}
    | dict.fromkeys(("memory", "balloon", "target", "available", "margin", "held"), "INTEGER"),
}
"""A history's tables, and the columns of each."""


class HistoryFileError(OSError):
    """The history's file cannot be opened. A class of its own, because an OSError may also come
    from writing the output."""


class NoVmError(Exception):
    """The history has nothing of a VM: says which VMs it has."""


def usual_place() -> Path:
    """The path of the history, if balloond keeps it where docs/history.md recommends."""
    return next((place for place in PLACES if place.exists()), PLACES[-1])


def remedy(err: OSError) -> str:
    """What to do where a history's file cannot be opened, as the end of a message."""
    match err.errno:
        case errno.ENOENT | errno.ENOTDIR:
            return "; name the file that balloond --history keeps, or have balloond keep one"
        case errno.EACCES | errno.EPERM:
            return "; it is its owner's alone: use sudo"
    return ""


def read(path: Path, table: str, since_s: float = 0.0, vm: str | None = None) -> Iterator[Row]:
    """Reads rows, in the order in which they were written.

    Args:
        path: the file.
        table: ``events`` or ``samples``.
        since_s: only rows since this time, in seconds since the epoch.
        vm: only rows of this VM; "": the host's samples; None: all.

    Raises:
        HistoryFileError: there is no such file, or it may not be read.
        NoVmError: the history has nothing of this VM.
        sqlite3.Error: the file is no history, or a history of another version.
    """
    _check_file(path)
    history = sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True)
    history.isolation_level = None
    try:
        history.row_factory = sqlite3.Row
        history.execute("BEGIN")  # One transaction: no write comes between check and read.
        _check(history)
        if vm:
            _check_vm(history, vm)
        columns = ", ".join(TABLES[table])
        query = f"SELECT {columns} FROM {table} WHERE at_s >= ? AND (? IS NULL OR vm = ?)"
        for row in history.execute(f"{query} ORDER BY rowid", (since_s, vm, vm)):
            yield _checked(dict(row))
    finally:
        history.close()


def _check_file(path: Path) -> None:
    try:
        status = os.stat(path)
    except OSError as err:
        raise HistoryFileError(err.errno, err.strerror) from err
    if not stat.S_ISREG(status.st_mode):
        raise HistoryFileError(0, "is no file; name another")
    try:
        beside = os.stat(f"{path}-wal")
    except OSError:
        return
    if not stat.S_ISREG(beside.st_mode) or beside.st_size > MOST_WAL_BYTES:
        raise HistoryFileError(0, "is no history: the file -wal beside it is none of its")


def _check(history: sqlite3.Connection) -> None:
    """Raises sqlite3.DatabaseError: a database is no history that can be read."""
    history.execute("PRAGMA trusted_schema=OFF")
    history.execute("PRAGMA cell_size_check=ON")
    mark, version, pages, page_bytes = (
        history.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("application_id", "user_version", "page_count", "page_size")
    )
    if mark != APPLICATION_ID:
        raise sqlite3.DatabaseError("it is another database")
    if version != VERSION:
        raise sqlite3.DatabaseError(f"it is of version {version}, not {VERSION}")
    if pages * page_bytes > MOST_BYTES:
        raise sqlite3.DatabaseError(f"it is larger than {MOST_BYTES >> 20} MiB")
    schema = {name: sql for name, sql in history.execute("SELECT name, sql FROM sqlite_master")}
    ours = {
        name: f"CREATE TABLE {name} ({', '.join(map(' '.join, columns.items()))})"
        for name, columns in TABLES.items()
    }
    if {name: " ".join(str(sql).split()) for name, sql in schema.items()} != ours:
        raise sqlite3.DatabaseError("it has other tables")
    (found,) = history.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise sqlite3.DatabaseError("it is damaged")


def _checked(row: Row) -> Row:
    """A row. Raises sqlite3.DatabaseError: a value has another type, or is out of range."""
    at_s, vm, *others = row.values()
    kinds = str if "message" in row else int | None
    if (
        not isinstance(at_s, float)
        or not 0 <= at_s < MOST_S
        or not isinstance(vm, str)
        or not all(isinstance(other, kinds) for other in others)
    ):
        raise sqlite3.DatabaseError("it is damaged")
    return row


def _check_vm(history: sqlite3.Connection, vm: str) -> None:
    query = "SELECT vm FROM events UNION SELECT vm FROM samples ORDER BY vm"
    names = [name for (name,) in history.execute(query)]
    if vm not in names:
        shown = ", ".join(printable(name) for name in names if name)
        raise NoVmError(f"only {shown}" if shown else "no VM yet")
