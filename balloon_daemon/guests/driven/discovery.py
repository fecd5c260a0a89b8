"""Finds the sockets of VMs that patterns describe, as they come and go.

Runs in the controller. Nothing is opened here: a socket is told from other files by stat(2), and
``finder.py`` finds out what listens there.
"""

import glob
import os
import stat
from collections.abc import Iterable, Iterator

MOST_SOCKETS = 1024
"""How many sockets are found at most: whoever may write to the directory may make any number."""


def sockets(patterns: Iterable[str]) -> tuple[dict[str, str], set[str]]:
    """The sockets that match patterns, and the other files that match them.

    Args:
        patterns: absolute paths with wildcards, as of glob(7).

    Returns:
        Each socket's path by its resolved path, so that a socket with two names is found once; and
        the paths of files that are no sockets.
    """
    found, others = dict[str, str](), set[str]()
    for pattern in patterns:
        for path in sorted(glob.iglob(pattern)):
            try:
                is_socket = stat.S_ISSOCK(os.stat(path).st_mode)
            except OSError:
                continue  # Removed meanwhile, or no permission.
            if not is_socket:
                others.add(path)
            elif len(found) < MOST_SOCKETS:
                found.setdefault(os.path.realpath(path), path)
    return found, others


def directories(patterns: Iterable[str]) -> set[str]:
    """The directories in which a new name could make a new match of a pattern."""
    return {directory for pattern in patterns for directory in _directories(pattern)}


def _directories(pattern: str) -> Iterator[str]:
    head, name = os.path.split(pattern)
    if not glob.has_magic(head):
        yield head
    elif name:
        yield from filter(os.path.isdir, glob.iglob(head))
        yield from _directories(head)


def name_of(path: str, taken: Iterable[str]) -> str:
    """A name for the VM behind a socket: the file's name without its ending, such as ``web`` for
    ``/run/qemu/web.qmp``; the whole path where that name is taken."""
    stem = os.path.splitext(os.path.basename(path))[0]
    return path if not stem or stem in taken else stem
