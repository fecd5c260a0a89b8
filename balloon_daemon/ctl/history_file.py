"""Reads the file that ``balloond --history`` keeps."""

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from balloon_daemon.errors import printable

VERSION, APPLICATION_ID = 1, 0x626C6E64
"""The same values as in ``records/history_writer.py``, which writes them into the file."""

PLACES = (Path("/run/balloond/history.db"), Path("/var/lib/balloond/history.db"))
"""The paths that docs/history.md recommends: under the shipped unit, and by hand."""

WHERE = f"the first that exists of {' and '.join(map(str, PLACES))}"

Row = dict[str, float | str | None]

_QUERIES = {
    "events": "SELECT at_s, vm, event, message FROM events",
    "samples": "SELECT at_s, vm, memory, balloon, target, available, margin, held FROM samples",
}


class HistoryFileError(OSError):
    """The history's file cannot be opened. A class of its own, because an OSError may also come
    from writing the output."""


class NoVmError(Exception):
    """The history has nothing of a VM: says which VMs it has."""


def usual_place() -> Path:
    """The path of the history, if balloond keeps it where docs/history.md recommends."""
    return next((place for place in PLACES if place.exists()), PLACES[-1])


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
    try:
        os.stat(path)  # for an error with the kernel's words
    except OSError as err:
        raise HistoryFileError(err.errno, err.strerror) from err
    history = sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True)
    try:
        history.row_factory = sqlite3.Row
        (mark,) = history.execute("PRAGMA application_id").fetchone()
        if mark != APPLICATION_ID:
            raise sqlite3.DatabaseError("it is another database")
        (version,) = history.execute("PRAGMA user_version").fetchone()
        if version != VERSION:
            raise sqlite3.DatabaseError(f"it is of version {version}, not {VERSION}")
        if vm:
            _check_vm(history, vm)
        query = f"{_QUERIES[table]} WHERE at_s >= ? AND (? IS NULL OR vm = ?) ORDER BY rowid"
        for row in history.execute(query, (since_s, vm, vm)):
            yield dict(row)
    finally:
        history.close()


def _check_vm(history: sqlite3.Connection, vm: str) -> None:
    query = "SELECT vm FROM events UNION SELECT vm FROM samples ORDER BY vm"
    names = [name for (name,) in history.execute(query)]
    if vm not in names:
        shown = ", ".join(printable(name) for name in names if name)
        raise NoVmError(f"only {shown}" if shown else "no VM yet")
