"""Locks on whole files (flock(2)): whether a running process uses a file.

The lock belongs to the open file. The kernel drops the lock when the open file's last descriptor
is closed, however the process ends. SQLite's own locks (fcntl(2)) are independent of it.
"""

import contextlib
import fcntl
import os
from pathlib import Path


def lock_file(fd: int) -> bool:
    """Locks an open file until it is closed; False: another open file has it locked."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_locked(path: Path) -> bool:
    """Whether a file is there and locked. Changes nothing.

    Raises:
        OSError: the file cannot be opened.
    """
    try:
        # O_NONBLOCK: the open of a FIFO would wait for somebody who writes to it.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    try:
        with contextlib.suppress(BlockingIOError):
            # Take a shared lock: two processes that check at once do not see each other's lock.
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
        return True
    finally:
        os.close(fd)
