"""Reads the file that ``balloond --history`` keeps."""

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

VERSION = 1
"""The version of ``records/history_writer.py``."""

PLACES = (Path("/run/balloond/history.db"), Path("/var/lib/balloond/history.db"))
"""Where docs/history.md has the file kept: under the shipped unit, and by hand."""

WHERE = f"the first that exists of {' and '.join(map(str, PLACES))}"

Row = dict[str, float | str | None]

_QUERIES = {
    "events": "SELECT at_s, vm, event, message FROM events",
    "samples": "SELECT at_s, vm, memory, balloon, target, available, margin, held FROM samples",
}


def usual_place() -> Path:
    """The file of a balloond that keeps it where docs/history.md says."""
    return next((place for place in PLACES if place.exists()), PLACES[-1])


def read(path: Path, table: str, since_s: float = 0.0, vm: str | None = None) -> Iterator[Row]:
    """Reads rows, in the order in which they were written.

    Args:
        path: the file.
        table: ``events`` or ``samples``.
        since_s: no older ones; in seconds since the epoch.
        vm: those of this VM alone; "": the host's samples; None: all.

    Raises:
        OSError: there is no such file, or it may not be read.
        sqlite3.Error: it is no history, or one of another version.
    """
    os.stat(path)  # for an error with the kernel's words
    history = sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True)
    try:
        history.row_factory = sqlite3.Row
        (version,) = history.execute("PRAGMA user_version").fetchone()
        if version != VERSION:
            raise sqlite3.DatabaseError(f"it is of version {version}, not {VERSION}")
        query = f"{_QUERIES[table]} WHERE at_s >= ? AND (? IS NULL OR vm = ?) ORDER BY rowid"
        for row in history.execute(query, (since_s, vm, vm)):
            yield dict(row)
    finally:
        history.close()
