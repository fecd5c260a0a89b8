"""Reads a policy file's text: a regular file of bounded size, never a device, never for ever.

A policy may include whatever its author writes, and is read by root before anything is jailed:
a FIFO would be waited for without end, a device read until memory is gone, and some devices do
something when they are only opened. What the user names on the command line may be a pipe too.
"""

import errno
import os
import stat

SIZE_LIMIT = 1024 * 1024
"""Bytes of one file; ChromeOS's largest policy has some 10,000."""

_CHUNK = 64 * 1024

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFSOCK: "a socket",
}


def read_text(path: str, *, named_by_user: bool = False) -> str:
    """A policy file's text. Bytes that are no UTF-8 may stand in comments: elsewhere no word
    has them, and the parser says where they are.

    Args:
        path: the file. From a policy: its bytes decoded as the file's were.
        named_by_user: it stands on the command line, so a pipe is read to its end (a FIFO, a
            shell's ``<(…)``, /dev/stdin), and /dev/null is an empty file.

    Raises:
        OSError: it cannot be read, is of another kind, or is larger than SIZE_LIMIT. ``strerror``
            says so in words, ``filename`` is the path.
    """
    name = _as_named(path)
    # Looked at before it is opened, as opening some devices has effects, and again afterwards.
    kind = _checked(path, os.stat(name), named_by_user=named_by_user)
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY
    if kind != stat.S_IFIFO:
        flags |= os.O_NONBLOCK  # a FIFO in its place would be waited for; a FIFO itself may be
    fd = os.open(name, flags)
    try:
        _checked(path, os.fstat(fd), named_by_user=named_by_user)
        content = _read_all(path, fd)
    finally:
        os.close(fd)
    return content.decode("utf-8", "surrogateescape")


def _as_named(path: str) -> str | bytes:
    if "\0" in path:
        raise OSError(errno.EINVAL, "no file has a NUL byte in its name", path)
    try:
        os.fsencode(path)
    except UnicodeEncodeError:  # from a policy, where the locale's encoding lacks a character
        return path.encode("utf-8", "surrogateescape")
    return path


def _checked(path: str, found: os.stat_result, *, named_by_user: bool) -> int:
    """The file's kind, if it may be read."""
    kind = stat.S_IFMT(found.st_mode)
    if kind == stat.S_IFREG:
        if found.st_size > SIZE_LIMIT:
            raise _too_large(path)
        return kind
    if kind == stat.S_IFDIR:
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if named_by_user and (kind == stat.S_IFIFO or _is_null(kind, found)):
        return kind
    wanted = "a file or a pipe" if named_by_user else "a file"
    raise OSError(errno.EINVAL, f"is {_KINDS.get(kind, 'something else')}, not {wanted}", path)


def _is_null(kind: int, found: os.stat_result) -> bool:
    return kind == stat.S_IFCHR and found.st_rdev == os.makedev(1, 3)  # devices.txt: /dev/null


def _read_all(path: str, fd: int) -> bytes:
    """All of it. A size says nothing: files of /proc have none, and others may grow meanwhile."""
    parts = []
    left = SIZE_LIMIT
    while part := os.read(fd, min(left + 1, _CHUNK)):
        parts.append(part)
        left -= len(part)
        if left < 0:
            raise _too_large(path)
    return b"".join(parts)


def _too_large(path: str) -> OSError:
    return OSError(errno.EFBIG, f"is larger than {SIZE_LIMIT >> 20} MiB", path)
