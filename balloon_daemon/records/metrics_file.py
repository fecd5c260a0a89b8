"""The file of ``--metrics``: whether metrics may be written there, and by one balloond alone.

Runs in the controller before it serves; ``metrics_writer`` writes the file.
"""

import os
import stat
from pathlib import Path

from balloon_daemon.errors import ConfigError, printable
from balloon_daemon.linux.directories import may_make_files, others_may_write
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.linux.file_lock import is_locked, lock_file

BEGINNING = b"# HELP balloond_"
"""How a file of metrics begins that is balloond's."""

BESIDE = ("-lock", "-new")
"""The endings of the names of the files beside it, which node_exporter leaves out: a lock, and
what replaces the file once it is whole."""

_TAKEN = "another balloond that runs writes its metrics there; name another file"


def check_metrics_file(path: Path) -> None:
    """Finds out whether metrics can be written to a file, and changes nothing.

    Raises:
        ConfigError: they cannot, other users could replace the file, or it is another program's.
    """
    try:
        why = _why_not(path)
    except OSError as err:
        why = f"{err.strerror}; name another file"
    if why:
        raise ConfigError(f"--metrics {printable(str(path))}: {why}")


def lock_metrics_file(path: Path) -> OwnedFd:
    """Keeps other balloonds from a file, after ``check_metrics_file``.

    Returns:
        Holds the lock until it is closed.

    Raises:
        ConfigError: another balloond holds the lock, or the lock's file cannot be made.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        lock = OwnedFd(os.open(_beside(path, "-lock"), flags, 0o600))
        if lock_file(lock.fileno()):
            return lock
        lock.close()
        why = _TAKEN
    except OSError as err:
        why = f"its lock: {err.strerror}; name another file"
    raise ConfigError(f"--metrics {printable(str(path))}: {why}")


def _why_not(path: Path) -> str:
    """Why no metrics can be written there, and the remedy; "" where they can."""
    parent = path.parent
    if not parent.is_dir():
        return "there is no such directory; make it, or name another"
    if why := others_may_write(parent):
        return f"{why}; use a directory of your own"
    if not may_make_files(parent):
        return f"no file can be made in {printable(str(parent))}; name another file"
    if os.path.lexists(path) and not _is_ours(path):
        return "is there and no file of balloond's metrics; name another file"
    for ending in BESIDE:
        beside = _beside(path, ending)
        if os.path.lexists(beside) and not stat.S_ISREG(os.lstat(beside).st_mode):
            return f"{printable(str(beside))} is there and no file; name another file"
    return _TAKEN if is_locked(_beside(path, "-lock")) else ""


def _is_ours(path: Path) -> bool:
    if not stat.S_ISREG(os.lstat(path).st_mode):
        return False
    with open(path, "rb") as file:
        return file.read(len(BEGINNING)) in (BEGINNING, b"")


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(f"{path.name}{ending}")
