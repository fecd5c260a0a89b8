"""Changes a setting of the whole host for a while, for one run of the tests at a time."""

import contextlib
import errno
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.harness.waiting import HANG_S, wait_until

NR_HUGEPAGES = Path("/proc/sys/vm/nr_hugepages")

LOCKED_WITHIN_S = 10 * HANG_S
"""Other checkouts' tests hold the lock one after the other, each for as long as a test may
hang."""


@contextlib.contextmanager
def changed(setting: Path, change: Callable[[str], str]) -> Iterator[str]:
    """Changes a file of /proc/sys for as long as the block runs.

    A lock is held meanwhile: if tests of two checkouts ran at once, each would restore the value
    that the other had set.

    Args:
        setting: the file.
        change: (its content) -> the new content.

    Yields:
        Its content before.

    Raises:
        OSError: not permitted here, or /proc/sys is read-only.
    """
    # Try to open the file first, so that nobody without permission waits for the lock.
    os.close(os.open(setting, os.O_RDWR | os.O_CLOEXEC))
    with _locked(setting.name):
        before = setting.read_text()
        setting.write_text(change(before))
        try:
            yield before
        finally:
            setting.write_text(before)


class NoSwapError(Exception):
    """Nothing can be swapped to there, or it is not permitted; says why."""


@contextlib.contextmanager
def swap_on(path: str) -> Iterator[None]:
    """Swaps to a file or a device, which is overwritten, for as long as the block runs; one run of
    the tests at a time.

    Args:
        path: the file, which must have its size, or the device.

    Raises:
        NoSwapError: it is not possible here.
    """
    with _locked("swap"):
        for command in (["mkswap", "--quiet", path], ["swapon", path]):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise NoSwapError(done.stderr.strip())
        try:
            yield
        finally:
            subprocess.run(["swapoff", path], check=True)


@contextlib.contextmanager
def zram(size_bytes: int) -> Iterator[str]:
    """A zram device of its own, for as long as the block runs.

    Yields:
        Its path in /dev.

    Raises:
        NoSwapError: this kernel has none, or it is not permitted.
    """
    control = Path("/sys/class/zram-control")
    try:
        number = (control / "hot_add").read_text().strip()
    except OSError as err:
        raise NoSwapError(str(err)) from err
    try:
        Path(f"/sys/block/zram{number}/disksize").write_text(str(size_bytes))
        yield f"/dev/zram{number}"
    finally:
        (control / "hot_remove").write_text(number)


@contextlib.contextmanager
def _locked(name: str) -> Iterator[None]:
    # An abstract socket name can be bound once on the host. It is independent of directories, so
    # checkouts in several roots or with several /tmp exclude each other, and it is freed with its
    # process.
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
