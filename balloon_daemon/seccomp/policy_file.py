"""Reads the text of a policy file: a regular file of bounded size, never a device.

A policy may include any path that its author writes, and root reads it before any jail exists:
opening a FIFO could block without end, a device could deliver bytes until memory is full, and the
mere opening of some devices has effects. A file named on the command line may also be a pipe.
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
    """The text of a policy file. Bytes that are no UTF-8 are allowed in comments; elsewhere the
    parser reports them with their place.

    Args:
        path: the file. From a policy: its bytes, decoded as the file's are.
        named_by_user: True: the path is from the command line, so a pipe is read to its end (a
            FIFO, a shell's ``<(…)``, /dev/stdin), and /dev/null is an empty file.

    Raises:
        OSError: the file cannot be read, is of another kind, or is larger than SIZE_LIMIT.
            ``strerror`` says which in words, ``filename`` is the path.
    """
    name = _as_named(path)
    # Check the file's kind before opening it, because opening some devices has effects. Check it
    # again afterwards, because the path may have led to another file by then.
    kind = _checked(path, os.stat(name), named_by_user=named_by_user)
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY
    if kind != stat.S_IFIFO:
        flags |= os.O_NONBLOCK  # do not block on a FIFO that has replaced the file
    fd = os.open(name, flags)
    try:
        _checked(path, os.fstat(fd), named_by_user=named_by_user)
        content = _read_all(path, fd)
    finally:
        os.close(fd)
    return content.decode("utf-8", "surrogateescape")


def why_unreadable(err: OSError) -> str:
    """Why ``read_text`` failed for a file that the user named, with the remedy; one line."""
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


def _as_named(path: str) -> str | bytes:
    if "\0" in path:
        raise OSError(errno.EINVAL, "no file has a NUL byte in its name", path)
    try:
        os.fsencode(path)
    except UnicodeEncodeError:  # a policy's name has a character that the locale's encoding lacks
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
    """Reads all of it. Its size is no limit: that is 0 in /proc, and other files may grow."""
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
