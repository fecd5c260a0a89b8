"""Tells who could replace a socket of ours, or block us by listing its directory.

Every user who may write to a directory above a socket can replace the socket. Every user who may
list the directory can hold the directory's lock, for which a bind(2) or unlink(2) there waits.

A VMM hands its guest's memory to whichever process listens at a path, and a balloond hands all
guests' memory to its keeper. Both trust the path alone, so no other user may be able to change it.
"""

import contextlib
import os
import stat
from pathlib import Path

_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_OTHERS_LIST = stat.S_IRGRP | stat.S_IROTH
_OTHERS_ENTER = stat.S_IXGRP | stat.S_IXOTH


def others_may_write(directory: Path) -> str:
    """Why other users than root and this process's may put files there; "" if none may.

    The check covers the directory, all directories above it and every symbolic link on the way,
    since the owner of any of them can replace it. In a sticky directory (mode 1777, as /tmp) users
    cannot replace each other's files, so a directory above may be sticky. The directory itself may
    not: any user can take a free name in it. A path that lstat(2) cannot examine passes this
    check: when the caller uses that path, the error says more.
    """
    trusted = {0, os.geteuid()}
    named = directory.absolute()
    for place in (named, Path(os.path.realpath(named))):
        for each in (place, *place.parents):
            try:
                link, status = os.lstat(each), os.stat(each)
            except OSError:
                continue
            owner = next((s.st_uid for s in (link, status) if s.st_uid not in trusted), None)
            if owner is not None:
                return f"{each} belongs to user {owner}"
            if status.st_mode & _OTHERS and (each == place or not status.st_mode & stat.S_ISVTX):
                return f"others may write to {each} (mode {stat.S_IMODE(status.st_mode):o})"
    return ""


def others_may_list(directory: Path) -> str:
    """Why other users than root and this process's may list a directory; "" if none may.

    A process that lists a directory (getdents64(2)) holds the directory's lock meanwhile. Whoever
    makes, renames or removes a file there waits for the lock, and no signal ends that wait.
    """
    try:
        place = Path(os.path.realpath(directory))
        mode = stat.S_IMODE(place.stat().st_mode)
        above = [each.stat() for each in place.parents]
    except OSError:
        return ""
    closed = any(not each.st_mode & _OTHERS_ENTER for each in above)
    return f"others may list {place} (mode {mode:o})" if mode & _OTHERS_LIST and not closed else ""


def may_make_files(directory: Path) -> bool:
    """Whether this process may make and rename files in a directory; makes none."""
    return os.access(directory, os.W_OK | os.X_OK, effective_ids=True)


def is_private(directory: Path) -> bool:
    """Whether the path is a directory of this process's user with mode 0700, not a link to it."""
    try:
        status = os.lstat(directory)
    except OSError:
        return False
    shape = (stat.S_IFDIR | stat.S_IRWXU, os.geteuid())
    return (status.st_mode & ~(stat.S_ISUID | stat.S_ISGID), status.st_uid) == shape


def make_private(directory: Path) -> None:
    """Makes a directory for this process's user alone, where it does not exist.

    Raises:
        FileExistsError: the path exists and is not ``is_private``.
        OSError: the directory cannot be made.
    """
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    if not is_private(directory):
        raise FileExistsError(0, f"it is no directory of user {os.geteuid()} with mode 700")
