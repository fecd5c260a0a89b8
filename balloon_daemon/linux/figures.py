"""Reads the kernel's small files again and again, such as /proc/meminfo, and keeps them open.

close(2) looks at all locks of its file, and whoever may read a file can put millions of locks on
it (fcntl(2), F_RDLCK). With 200,000 on /proc/PID/mountinfo a close took 55 to 75 ms, during which
balloond would serve no VM.
"""

import os
from typing import NamedTuple

from balloon_daemon.linux.events import OwnedFd

MAX_KEPT = 64
"""Files that stay open; of more, those are closed that were opened first."""

MOST_BYTES = 1 << 24
"""More than any such file has: a list of 1,000 mounts has some 150 KiB."""

_CHUNK_BYTES = 1 << 16


class _Kept(NamedTuple):
    """An open file, and its (st_dev, st_ino)."""

    fd: OwnedFd
    identity: tuple[int, int]


_kept: dict[str, _Kept] = {}


def read_figures(path: str, most_bytes: int = MOST_BYTES) -> bytes:
    """The present content of a file, which stays open for the next call.

    A file that was put in its place since the last call is noticed.

    Args:
        path: the file.
        most_bytes: how much of it is read at most.

    Raises:
        OSError: the kernel's reason, with the file's name.
    """
    content = bytearray()
    try:
        fd = _opened(path)
        while part := os.pread(fd, min(_CHUNK_BYTES, most_bytes - len(content)), len(content)):
            content += part
    except OSError as err:
        _kept.pop(path, None)
        raise OSError(err.errno, err.strerror, path) from err
    return bytes(content)


def _opened(path: str) -> int:
    kept, now = _kept.get(path), os.stat(path)
    if kept is None or kept.identity != (now.st_dev, now.st_ino):
        # O_NONBLOCK: opening a FIFO put there by mistake must not block.
        fd = OwnedFd(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        opened = os.fstat(fd.fileno())
        kept = _kept[path] = _Kept(fd, (opened.st_dev, opened.st_ino))
        if len(_kept) > MAX_KEPT:
            del _kept[next(iter(_kept))]
    return kept.fd.fileno()
