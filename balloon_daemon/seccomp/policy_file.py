"""Reads the text of a policy file: a regular file of bounded size, never a device.

A policy may include any path that its author writes, and root reads it before any jail exists. A
file named on the command line may also be a pipe.
"""

import errno
import os

from balloon_daemon.linux.bounded_file import read_bounded

SIZE_LIMIT = 1024 * 1024
"""Bytes of one file; ChromeOS's largest policy has some 10,000."""


def read_text(path: str, *, named_by_user: bool = False) -> str:
    """The text of a policy file. Bytes that are no UTF-8 are allowed in comments; elsewhere the
    parser reports them with their place.

    Args:
        path: the file. A path that stands in a policy was decoded like the policy's other text.
        named_by_user: True: the path is from the command line, so a pipe is read to its end (a
            FIFO, a shell's ``<(…)``, /dev/stdin), and /dev/null is an empty file.

    Raises:
        OSError: the file cannot be read, is of another kind, or is larger than SIZE_LIMIT.
            ``strerror`` says which in words, ``filename`` is the path.
    """
    found = read_bounded(path, _as_named(path), SIZE_LIMIT, pipes_too=named_by_user)
    return found.content.decode("utf-8", "surrogateescape")


def _as_named(path: str) -> str | bytes:
    if "\0" in path:
        raise OSError(errno.EINVAL, "no file has a NUL byte in its name", path)
    try:
        os.fsencode(path)
    except UnicodeEncodeError:  # a policy's name has a character that the locale's encoding lacks
        return path.encode("utf-8", "surrogateescape")
    return path
