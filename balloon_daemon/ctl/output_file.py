"""Writes a file that a flag names."""

import errno
import os
import stat
from pathlib import Path

from balloon_daemon.linux.directories import others_may_write

_REFUSED = {
    errno.ELOOP: "it is a symbolic link",
    errno.ENXIO: "it is a FIFO",
    errno.EEXIST: "it is another user's, or has another name",
}
"""Why nothing is written in a directory where others may write."""


def write_output(path: Path, content: bytes) -> None:
    """Writes a file, in place of what it held.

    Where others may write to its directory (/tmp), one of them may have put a link to another file
    of this user's in its place, or a file of their own, to read what is written or to change it:
    there no link is followed, and only a file of this user's without other names is written.

    Args:
        path: the file, which need not be there.
        content: all that it is to hold.

    Raises:
        OSError: it cannot be written, and names the file.
    """
    shared = others_may_write(path.parent)
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (os.O_NOFOLLOW if shared else 0)
    try:
        # O_NONBLOCK: a FIFO that another user has put there must not keep open(2) waiting.
        fd = os.open(path, flags | (os.O_NONBLOCK if shared else 0), 0o666)
        with open(fd, "wb") as file:
            if shared and not _is_ours(os.fstat(fd)):
                raise FileExistsError(errno.EEXIST, "")
            if stat.S_ISREG(os.fstat(fd).st_mode):
                file.truncate()
            file.write(content)
    except OSError as err:
        why = err.strerror
        if shared and err.errno in _REFUSED:
            why = f"{_REFUSED[err.errno]}, and {shared}; name one in a directory of your own"
        # An error of write(2), a full disk for example, has no file's name.
        raise OSError(err.errno, why, str(path)) from err


def _is_ours(status: os.stat_result) -> bool:
    is_file, uid = stat.S_ISREG(status.st_mode), os.geteuid()
    return is_file and (status.st_uid, status.st_nlink) == (uid, 1)
