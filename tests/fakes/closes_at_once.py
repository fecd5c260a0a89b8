"""A ``Closes`` without children, for tests in which no close can block."""

import os
from collections.abc import Sequence

from balloon_daemon.vhost_user.foreign_fds import Closes, ForeignFds


class _ClosesAtOnce:
    def close(self, fds: Sequence[int], owner: ForeignFds | None = None) -> None:
        for fd in fds:
            os.close(fd)


def closes_at_once() -> Closes:
    """Closes in this process, before it returns."""
    return _ClosesAtOnce()
