"""Finding out how large a balloon is that another balloond has left behind.

A driver in mid-life says how large its balloon is only when that changes. A target of one page
changes every balloon but one of one page, which the next target, nothing, does. So these two are
told in turns until the driver writes ``actual``; nothing is decided before.
"""

import asyncio
from collections.abc import Callable

from balloon_daemon.units import PAGE_SIZE

EVERY_POLLS = 5
"""How long a driver has to answer before it is asked anew, in times of the policy's poll (1 s)."""


class Sounding:
    """Asks one driver until it has answered.

    Args:
        set_target: tells the driver a target in bytes.
        poll_s: the policy's poll, in seconds.
    """

    def __init__(self, set_target: Callable[[int], None], poll_s: float) -> None:
        self._set_target = set_target
        self._every_s = EVERY_POLLS * poll_s
        self._timer: asyncio.TimerHandle | None = None
        self._asked = 0

    @property
    def under_way(self) -> bool:
        return self._timer is not None

    def begin(self) -> None:
        """Asks now, and again until ``end``."""
        self._asked += 1
        self._set_target(self._asked % 2 * PAGE_SIZE)
        self._timer = asyncio.get_running_loop().call_later(self._every_s, self.begin)

    def end(self) -> None:
        """Asks no more; fine where it never began."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
