"""A setting of the whole host, changed for a while, by one run of the tests at a time."""

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.vm.waiting import wait_until

LOCKED_WITHIN_S = 120.0
"""Another checkout's test holds it for a few seconds; its whole machine may be busy."""


@contextlib.contextmanager
def changed(setting: Path, change: Callable[[str], str]) -> Iterator[str]:
    """Changes a file of /proc/sys for as long as the block runs.

    Of two checkouts whose tests run at once, each would put back what the other had changed: a
    lock is held meanwhile. Its file stays, as removing it would let two hold it.

    Args:
        setting: the file.
        change: makes of its content what is to be written.

    Yields:
        What it was before.

    Raises:
        OSError: not permitted here, or /proc/sys is read-only.
    """
    # First, so that nobody locks who may not change: the file would be of the wrong owner.
    os.close(os.open(setting, os.O_RDWR | os.O_CLOEXEC))
    with _locked(Path(tempfile.gettempdir()) / f"balloond-tests-{setting.name}.lock"):
        before = setting.read_text()
        setting.write_text(change(before))
        try:
            yield before
        finally:
            setting.write_text(before)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def taken() -> bool:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    try:
        wait_until(taken, deadline_s=LOCKED_WITHIN_S, what=f"the lock {path}")
        try:
            yield
        finally:
            # Not by closing alone: a process forked meanwhile may have it open for a moment more.
            fcntl.flock(lock, fcntl.LOCK_UN)
    finally:
        os.close(lock)
