"""Finds out the size of a balloon that another balloond has left behind.

A driver that has run since before this balloond writes ``actual`` only when its balloon's size
changes. A target of one page changes the size of every balloon except a balloon of one page, which
a target of 0 changes. So the driver is told these two targets in turn until it writes ``actual``;
before that the policy decides nothing.
"""

import asyncio
from collections.abc import Callable

from balloon_daemon.units import PAGE_SIZE

EVERY_POLLS = 5
"""How long a driver has to answer before it is asked again, in polls of the policy (1 s each)."""


class Sounding:
    """Sets one driver's target to one page and to 0 in turn, until the driver writes ``actual``.

    Args:
        set_target: sets the driver's target in bytes.
        poll_s: the balloon policy's poll interval, in seconds.
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
        """Asks now, and repeatedly until ``end``."""
        self._asked += 1
        self._set_target(self._asked % 2 * PAGE_SIZE)
        self._timer = asyncio.get_running_loop().call_later(self._every_s, self.begin)

    def end(self) -> None:
        """Stops asking; does nothing where it was not asking."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
