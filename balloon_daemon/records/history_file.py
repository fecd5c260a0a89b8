"""Checks that a history can be kept in the file of ``--history``, and locks it against other
balloonds.

Runs in the controller before it serves, and loads no SQLite. ``history_writer`` opens the file.
"""

import os
import stat
from pathlib import Path

from balloon_daemon.errors import printable
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.linux.file_lock import is_locked
from balloon_daemon.records import file_place
from balloon_daemon.records.file_place import beside

APPLICATION_ID = b"blnd"
"""The value of SQLite's ``application_id`` in each history; ``history_writer`` sets it."""

BESIDE = ("-wal", "-shm", "-journal", "-lock")
"""The endings of the names of the files beside a history: SQLite's own files, and a lock file. A
lock on the history itself would not do: a damaged history is renamed, and its lock goes along."""

_MAGIC = b"SQLite format 3\0"
_ID_AT, _HEADER_BYTES = 68, 100
"""https://sqlite.org/fileformat.html, "The Database Header"."""


_TAKEN = "another balloond that runs keeps its history there; name another file"


def check_place(path: Path) -> None:
    """Finds out whether a history can be kept in a file, and changes nothing.

    Raises:
        ConfigError: no history can be kept there, other users could replace the file, or the file
            is another program's.
    """
    file_place.check_place("--history", path, _why_not)


def lock_place(path: Path) -> OwnedFd:
    """Keeps other balloonds from a history, after ``check_place``."""
    return file_place.lock_place("--history", path, _TAKEN)


def _why_not(path: Path) -> str:
    if path.is_symlink():
        return "is a symbolic link; name the file itself"
    size_bytes = _size_of(path)
    if size_bytes is None:
        return "is no file; name another"
    if size_bytes and not _is_history(path):
        return "is there and no history of balloond's; name another file"
    for ending in BESIDE[:-1]:
        # SQLite would delete such a file beside a new history, or take its content for the
        # history's.
        if not size_bytes and os.path.lexists(other := beside(path, ending)):
            return f"{printable(str(other))} is there, of another database; name another file"
    if _size_of(lock := beside(path, "-lock")) != 0:
        return f"{printable(str(lock))} is there and no lock of balloond's; name another file"
    return _TAKEN if is_locked(lock) else ""


def _size_of(path: Path) -> int | None:
    """A file's size in bytes, 0 where there is none; None: it is a link, or no regular file."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _is_history(path: Path) -> bool:
    with open(path, "rb") as file:
        header = file.read(_HEADER_BYTES)
    return header.startswith(_MAGIC) and header[_ID_AT : _ID_AT + 4] == APPLICATION_ID
