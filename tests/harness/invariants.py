"""Invariants that must never break, as opposed to mere crashes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from balloon_daemon.linux.fd_kind import keep_own_directory
from tests.harness.kept_figures import close_figures


class InvariantBrokenError(AssertionError):
    """balloond runs and does something forbidden: the worst that a campaign can find."""


def require(holds: object, what: str, *seen: object) -> None:
    """Raises InvariantBrokenError with the values seen, unless the condition holds."""
    if not holds:
        raise InvariantBrokenError(f"{what}: {', '.join(map(repr, seen))}" if seen else what)


def open_fds(pid: int | str = "self") -> int:
    """How many file descriptors a process has open, without the one used for counting, and another
    process's without its files of figures, which stay open once they have been read."""
    numbers = os.listdir(f"/proc/{pid}/fd")
    if pid == "self":
        return len(numbers) - 1
    figures = 0
    for number in numbers:
        with suppress(FileNotFoundError):  # closed after the listing
            figures += os.readlink(f"/proc/{pid}/fd/{number}").startswith(("/proc/", "/sys/"))
    return len(numbers) - figures


@contextmanager
def no_fd_left_open() -> Iterator[None]:
    """Checks that the block closes all descriptors that it opens or is given."""
    close_figures()
    keep_own_directory()  # It stays open from the first use on.
    before = open_fds()
    yield
    close_figures()
    after = open_fds()
    require(after == before, "file descriptors left open", after - before)
