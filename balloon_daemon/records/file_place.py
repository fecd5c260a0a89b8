"""Checks that balloond can write the file that a flag names, and locks it against other balloonds.

The common part of ``--record``, ``--history`` and ``--metrics``. Runs in the controller before it
serves.
"""

import errno
import os
from collections.abc import Callable
from pathlib import Path

from balloon_daemon.errors import ConfigError, printable
from balloon_daemon.linux.directories import may_make_files, others_may_write
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.linux.file_lock import lock_file

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class NoRoomError(ConfigError):
    """A file cannot be made because its disk, or the user's part of it, is full.

    The operator has made no mistake: balloond serves VMs without the file, as it does where the
    disk gets full later.

    Attributes:
        why: the kernel's text.
    """

    def __init__(self, said: str, why: str) -> None:
        super().__init__(said)
        self.why = why


def not_made(flag: str, path: Path, err: OSError) -> ConfigError:
    """The error for a file that cannot be made: ``NoRoomError`` where there is no room."""
    said = f"{flag} {printable(str(path))}: {err.strerror}"
    if err.errno in _NO_ROOM:
        return NoRoomError(said, err.strerror or "")
    return ConfigError(said)


def check_place(flag: str, path: Path, why_not: Callable[[Path], str]) -> None:
    """Finds out whether a file can be kept at a place, and changes nothing.

    Args:
        flag: the flag that names the file.
        path: the file.
        why_not: called where the directory is suitable: says why the file cannot be kept there,
            with the remedy; "": it can be.

    Raises:
        ConfigError: the file cannot be kept there, or other users could replace it.
    """
    try:
        why = _directory_not(path.absolute().parent) or why_not(path)
    except OSError as err:
        why = f"{err.strerror}; name another file"
    if why:
        raise ConfigError(f"{flag} {printable(str(path))}: {why}")


def lock_place(flag: str, path: Path, taken: str) -> OwnedFd:
    """Keeps other balloonds from a file, after ``check_place``.

    Args:
        flag: the flag that names the file.
        path: the file.
        taken: the error's text where another balloond has the lock: what it does with the file,
            and the remedy.

    Returns:
        The lock file's descriptor: the lock is held until this descriptor is closed.

    Raises:
        NoRoomError: there is no room for the lock's file.
        ConfigError: another balloond holds the lock, or the lock's file cannot be made.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        lock = OwnedFd(os.open(beside(path, "-lock"), flags, 0o600))
        if lock_file(lock.fileno()):
            return lock
        lock.close()
        why = taken
    except OSError as err:
        if err.errno in _NO_ROOM:
            raise not_made(flag, path, err) from err
        why = f"its lock: {err.strerror}; name another file"
    raise ConfigError(f"{flag} {printable(str(path))}: {why}")


def beside(path: Path, ending: str) -> Path:
    """The path with an ending added to its last part: ``web.prom`` and ``-lock`` make
    ``web.prom-lock``."""
    return path.with_name(f"{path.name}{ending}")


def _directory_not(parent: Path) -> str:
    if not parent.is_dir():
        return "there is no such directory; make it, or name another"
    if why := others_may_write(parent):
        return f"{why}; use a directory of your own"
    if not may_make_files(parent):
        return f"no file can be made in {printable(str(parent))}; name another file"
    return ""
