"""Sends the service manager WATCHDOG=1, as the event loop runs, and balloond's status in a line.

Runs in the controller, if the service manager has a watchdog for it (``WatchdogSec=``). A timer
wakes the controller twice in each watchdog time, for both messages; without a watchdog, never.

``WATCHDOG=1`` is sent even while a device, or the template (the process that forks devices), does
not answer: otherwise a device that its guest has taken over could have systemd kill balloond, and
so end the service of all VMs. A device that does not read its orders is published by name
(``OrderWatch``), a template that does not answer is killed (``Forks``), and a template that has
ended is replaced at the next beat.
"""

import asyncio
from collections.abc import Callable

from balloon_daemon.linux.systemd import notify
from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.sizing.decision import NeverLow, Reading

AGAIN_S = 1.0
"""How soon to send the message again where the service manager's socket queue is full: at the next
beat it might be too late for the watchdog."""


class Figures(NamedTuple):
    """The figures in the status line.

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
        line: makes the status line.
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
