"""A setting of the whole host, changed for a while, by one run of the tests at a time."""

import contextlib
import errno
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.harness.waiting import HANG_S, wait_until

NR_HUGEPAGES = Path("/proc/sys/vm/nr_hugepages")

LOCKED_WITHIN_S = 10 * HANG_S
"""Other checkouts' tests hold it one after the other, each for as long as a test may hang."""


@contextlib.contextmanager
def changed(setting: Path, change: Callable[[str], str]) -> Iterator[str]:
    """Changes a file of /proc/sys for as long as the block runs.

    Of two checkouts whose tests run at once, each would put back what the other had changed: a
    lock is held meanwhile.

    Args:
        setting: the file.
        change: makes of its content what is to be written.

    Yields:
        What it was before.

    Raises:
        OSError: not permitted here, or /proc/sys is read-only.
    """
    # First, so that nobody waits who may not change it.
    os.close(os.open(setting, os.O_RDWR | os.O_CLOEXEC))
    with _locked(setting.name):
        before = setting.read_text()
        setting.write_text(change(before))
        try:
            yield before
        finally:
            setting.write_text(before)


@contextlib.contextmanager
def _locked(name: str) -> Iterator[None]:
    # An abstract name, which nobody else can have: it knows no directories, so that checkouts in
    # several roots or with several /tmp see one another, and goes with its process.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as lock:

        def taken() -> bool:
            try:
                lock.bind(f"\0balloond-tests-{name}")
            except OSError as err:
                if err.errno != errno.EADDRINUSE:
                    raise
                return False
            return True

        wait_until(taken, deadline_s=LOCKED_WITHIN_S, what=f"the lock of {name}")
        yield
