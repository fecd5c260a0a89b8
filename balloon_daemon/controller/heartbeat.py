"""Tells the service manager that the event loop turns, and balloond's status in a line.

Runs in the controller, under a service manager with a watchdog (``WatchdogSec=``). It wakes the
controller twice in each watchdog time, for both messages together; without a watchdog not at all.

A device or a template that does not answer is no reason to withhold ``WATCHDOG=1``: a device that
its guest has taken over could then end the service of all VMs. Each is looked after by itself: an
order that a device does not read is published and the device named (``OrderWatch``), a template
that does not answer is killed (``Forks``), and one that has ended is replaced at the next beat.
"""

import asyncio
from collections.abc import Callable

from balloon_daemon.linux.systemd import notify
from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.sizing.decision import NeverLow, Reading

AGAIN_S = 1.0
"""When to tell the manager again where its queue is full: the next beat may be too late."""


class Figures(NamedTuple):
    """What the status line is made of.

    Attributes:
        vms: how many VMs there are.
        balloon_bytes: the sum of their balloons.
        seen: a reading of the low-memory source; None: its figures are unknown.
    """

    vms: int
    balloon_bytes: int
    seen: Reading | NeverLow | None


class Heartbeat:
    """Sends ``WATCHDOG=1``, and ``STATUS=`` where the line has changed.

    Args:
        every_s: the time between two messages.
        line: words the status.
        tend: replaces processes that devices need and that have ended.
    """

    def __init__(
        self,
        every_s: float,
        line: Callable[[int, int, Reading | NeverLow | None], str],
        tend: Callable[[], None],
    ) -> None:
        self._every_s = every_s
        self._line = line
        self._tend = tend
        self._said = ""
        self._look: Callable[[], Figures]
        self._timer: asyncio.Handle | None = None

    def begin(self, look: Callable[[], Figures]) -> None:
        """Sends the first message in the next turn of the event loop, and others from then on.

        Args:
            look: gives the present figures.
        """
        self._look = look
        self._timer = asyncio.get_running_loop().call_soon(self._beat)

    def close(self) -> None:
        """Sends no more messages."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _beat(self) -> None:
        line = self._said
        try:
            self._tend()
            line = self._line(*self._look())
        finally:
            # Send WATCHDOG=1 after an error too, which the event loop publishes: the loop still
            # turns, and without the message systemd would kill balloond.
            changed = [f"STATUS={line}"] if line != self._said else []
            told = notify("WATCHDOG=1", *changed, within_s=0)
            if told:
                self._said = line
            after_s = self._every_s if told else min(AGAIN_S, self._every_s)
            self._timer = asyncio.get_running_loop().call_later(after_s, self._beat)
