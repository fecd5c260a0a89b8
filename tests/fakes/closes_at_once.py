"""A Closer where nobody hostile is there: no child is needed, and nothing is left to be done."""

import os
from collections.abc import Sequence
from typing import cast

from balloon_daemon.linux.closing import Closer


class _ClosesAtOnce:
    def close(self, fds: Sequence[int], owner: object = None) -> None:
        for fd in fds:
            os.close(fd)


def closes_at_once() -> Closer:
    """Closes in this process, before it returns."""
    return cast(Closer, _ClosesAtOnce())
