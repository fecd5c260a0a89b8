"""Checks that metrics can be written to the file of ``--metrics``, and locks it against other
balloonds.

Runs in the controller before it serves; ``metrics_writer`` writes the file.
"""

import os
import stat
from pathlib import Path

from balloon_daemon.errors import printable
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.linux.file_lock import is_locked
from balloon_daemon.records.file_place import beside, check_place, lock_place

BEGINNING = b"# HELP balloond_"
"""The first bytes of each file of metrics that balloond has written."""

BESIDE = ("-lock", "-new")
"""The endings of the names of two files beside the metrics' file: a lock file, and the new text
until rename(2) puts it in the place of the old one. node_exporter reads neither: it reads only
files that end in ``.prom``."""

_TAKEN = "another balloond that runs writes its metrics there; name another file"


def check_metrics_file(path: Path) -> None:
    """Finds out whether metrics can be written to a file, and changes nothing.

    Raises:
        ConfigError: they cannot, other users could replace the file, or it is another program's.
    """
    check_place("--metrics", path, _why_not)


def lock_metrics_file(path: Path) -> OwnedFd:
    """Keeps other balloonds from a file, after ``check_metrics_file``; see ``lock_place``."""
    return lock_place("--metrics", path, _TAKEN)


def _why_not(path: Path) -> str:
    if os.path.lexists(path) and not _is_ours(path):
        return "is there and no file of balloond's metrics; name another file"
    for ending in BESIDE:
        other = beside(path, ending)
        if os.path.lexists(other) and not stat.S_ISREG(os.lstat(other).st_mode):
            return f"{printable(str(other))} is there and no file; name another file"
    return _TAKEN if is_locked(beside(path, "-lock")) else ""


def _is_ours(path: Path) -> bool:
    if not stat.S_ISREG(os.lstat(path).st_mode):
        return False
    with open(path, "rb") as file:
        return file.read(len(BEGINNING)) in (BEGINNING, b"")
