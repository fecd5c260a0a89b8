"""Invariants that must never break, as opposed to mere crashes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


class InvariantBrokenError(AssertionError):
    """balloond runs and does something forbidden: the worst that a campaign can find."""


def require(holds: object, what: str, *seen: object) -> None:
    """Raises InvariantBrokenError with the values seen, unless the condition holds."""
    if not holds:
        raise InvariantBrokenError(f"{what}: {', '.join(map(repr, seen))}" if seen else what)


def open_fds(pid: int | str = "self") -> int:
    """How many file descriptors a process has open, without the one used for counting."""
    return len(os.listdir(f"/proc/{pid}/fd")) - (pid == "self")


@contextmanager
def no_fd_left_open() -> Iterator[None]:
    """Checks that the block closes all descriptors that it opens or is given."""
    before = open_fds()
    yield
    after = open_fds()
    require(after == before, "file descriptors left open", after - before)
