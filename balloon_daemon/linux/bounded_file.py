"""Reads a regular file of bounded size, never a device.

A path may lead to a file of any kind, and root may open it: opening a FIFO could block without
end, a device could deliver bytes until memory is full, and the mere opening of some devices has
effects.
"""

import errno
import os
import stat

from balloon_daemon.named_tuple import NamedTuple

_CHUNK = 64 * 1024

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFSOCK: "a socket",
}


class Content(NamedTuple):
    """A file's bytes, and the status of the very file that they were read from."""

    content: bytes
    status: os.stat_result


def read_bounded(
    path: str, name: str | bytes, limit_bytes: int, *, pipes_too: bool = False
) -> Content:
    """Reads a file whole.

    Args:
        path: the path for people, as errors show it.
        name: the path for the kernel.
        limit_bytes: a larger file is refused.
        pipes_too: True: a pipe is read to its end (a FIFO, a shell's ``<(…)``, /dev/stdin), and
            /dev/null is an empty file.

    Raises:
        OSError: the file cannot be read, is of another kind, or is larger. ``strerror`` says which
            in words, ``filename`` is the path.
    """
    # Check the file's kind before opening it, because opening some devices has effects. Check it
    # again afterwards, because the path may have led to another file by then.
    kind = _checked(path, os.stat(name), limit_bytes, pipes_too=pipes_too)
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY
    if kind != stat.S_IFIFO:
        flags |= os.O_NONBLOCK  # do not block on a FIFO that has replaced the file
    fd = os.open(name, flags)
    try:
        status = os.fstat(fd)
        _checked(path, status, limit_bytes, pipes_too=pipes_too)
        return Content(_read_all(path, fd, limit_bytes), status)
    finally:
        os.close(fd)


def why_unreadable(err: OSError) -> str:
    """Why a file that the user named cannot be read, with the remedy; one line."""
    why = err.strerror or str(err)
    match err.errno:
        case errno.ENOENT | errno.ENOTDIR:
            return f"{why}; name a file that there is"
        case errno.EISDIR:
            return f"{why}; name a file in it"
        case errno.EACCES:
            return f"{why}; let the user who starts this read it, or name another file"
        case _:
            return why


def _checked(path: str, found: os.stat_result, limit_bytes: int, *, pipes_too: bool) -> int:
    """Returns the file's type (S_IFMT); raises OSError where it may not be read."""
    kind = stat.S_IFMT(found.st_mode)
    if kind == stat.S_IFREG:
        if found.st_size > limit_bytes:
            raise _too_large(path, limit_bytes)
        return kind
    if kind == stat.S_IFDIR:
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if pipes_too and (kind == stat.S_IFIFO or _is_null(kind, found)):
        return kind
    wanted = "a file or a pipe" if pipes_too else "a file"
    raise OSError(errno.EINVAL, f"is {_KINDS.get(kind, 'something else')}, not {wanted}", path)


def _is_null(kind: int, found: os.stat_result) -> bool:
    return kind == stat.S_IFCHR and found.st_rdev == os.makedev(1, 3)  # devices.txt: /dev/null


def _read_all(path: str, fd: int, limit_bytes: int) -> bytes:
    """Reads up to the end of file, whatever st_size says: it is 0 in /proc, and files grow."""
    parts = []
    left = limit_bytes
    while part := os.read(fd, min(left + 1, _CHUNK)):
        parts.append(part)
        left -= len(part)
        if left < 0:
            raise _too_large(path, limit_bytes)
    return b"".join(parts)


def _too_large(path: str, limit_bytes: int) -> OSError:
    return OSError(errno.EFBIG, f"is larger than {limit_bytes >> 20} MiB", path)
