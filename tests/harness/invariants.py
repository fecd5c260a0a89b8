"""What must never happen, told apart from what merely crashes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


class InvariantBrokenError(AssertionError):
    """balloond lives and does what it must not: the worst that a campaign can find."""


def require(holds: object, what: str, *seen: object) -> None:
    """Raises InvariantBrokenError with what was seen, unless it holds."""
    if not holds:
        raise InvariantBrokenError(f"{what}: {', '.join(map(repr, seen))}" if seen else what)


def open_fds(pid: int | str = "self") -> int:
    """How many file descriptors a process has open, one used for looking not counted."""
    return len(os.listdir(f"/proc/{pid}/fd")) - (pid == "self")


@contextmanager
def no_fd_left_open() -> Iterator[None]:
    """Holds what runs inside to closing whatever it opened or was given."""
    before = open_fds()
    yield
    after = open_fds()
    require(after == before, "file descriptors left open", after - before)
