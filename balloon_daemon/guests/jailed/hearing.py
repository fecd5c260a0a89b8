"""Hears one device: its reports at a bounded rate, and whether it takes its orders.

A device may be taken over by its guest at any moment. What it then says costs its neighbours time,
as all guests share one loop; so a tube that says more than any device has to say is left alone for
a moment. The device's own writes fail then, which no honest one ever sees.
"""

import asyncio
from collections.abc import Callable

from balloon_daemon.events import DeviceStalled, DeviceTakesOrders, Publish
from balloon_daemon.tube.connection import ControllerEnd
from balloon_daemon.tube.messages import Up
from balloon_daemon.units import VmId

REPORTS_A_SECOND = 200
"""Some 40 come from a device whose guest does all that it can; so many may also come at once."""

PAUSE_S = 0.1
"""For how long a tube that says more is left alone."""

LAST_READS = 512
"""Looks into a dead device's tube, of 64 reports each: far more than any tube holds."""

STALLED_S = 5.0
"""A device that has taken no order for so long is said. It is not killed for it: on a starved host
or in a frozen cgroup the next one would fare no better, and six deaths end a VM's balloon; who may
stop it may stop the next one too, and is kept out by a user of the devices' own."""

LOOK_S = 1.0
"""How often to look, as long as any order is unread."""


class ReportReader:
    """Reads a device's reports.

    Args:
        tube: leads to it.
        take: gets each report.
        garbage: called once, with what came, where that is what no device ever sends; nothing
            more is read then.
    """

    def __init__(
        self, tube: ControllerEnd, take: Callable[[Up], None], garbage: Callable[[str], None]
    ) -> None:
        self._tube = tube
        self._take = take
        self._garbage = garbage
        self._loop = asyncio.get_running_loop()
        self._room, self._at_s = float(REPORTS_A_SECOND), self._loop.time()
        self._pause: asyncio.TimerHandle | None = None
        self._loop.add_reader(tube.fileno(), self._hear)

    def _hear(self) -> None:
        paused, self._pause = self._pause is not None, None
        now = self._loop.time()
        earned = (now - self._at_s) * REPORTS_A_SECOND
        self._room, self._at_s = min(self._room + earned, REPORTS_A_SECOND), now
        if self._room > 0:
            self._room -= self.read()
        if self._tube.at_end or self._tube.garbage is not None:
            return
        if self._room <= 0:
            self._loop.remove_reader(self._tube.fileno())
            self._pause = self._loop.call_later(PAUSE_S, self._hear)
        elif paused:
            self._loop.add_reader(self._tube.fileno(), self._hear)

    def read(self) -> int:
        """Takes reports that wait; returns how many."""
        reports = self._tube.receive()
        if reports is None:
            self._loop.remove_reader(self._tube.fileno())
            return 0
        for report in reports:
            self._take(report)
        if self._tube.garbage is not None:
            self._loop.remove_reader(self._tube.fileno())
            self._garbage(self._tube.garbage)
        return len(reports)

    def end(self) -> None:
        """Takes what a device has left behind, and reads no more.

        At each look it gives only some of it. Should another process hold its end of the tube
        too, there is no end to be waited for.
        """
        if self._pause is not None:
            self._pause.cancel()
        for _ in range(LAST_READS):
            if self._tube.garbage is not None or not self.read():
                break
        self._loop.remove_reader(self._tube.fileno())


class OrderWatch:
    """Notices a device that takes no orders: stopped by somebody, hung, or never scheduled.

    Args:
        vm: whose device it is.
        pid: its process id.
        tube: leads to it.
        publish: takes what happens.
    """

    def __init__(self, vm: VmId, pid: int, tube: ControllerEnd, publish: Publish) -> None:
        self._vm = vm
        self._pid = pid
        self._tube = tube
        self._publish = publish
        self._loop = asyncio.get_running_loop()
        self._unread = 0
        self._taken_at_s = 0.0
        self._stalled = False
        self._later: asyncio.TimerHandle | None = None

    def sent(self) -> None:
        """An order has been sent: it is to be taken."""
        if self._later is None:
            self._taken_at_s = self._loop.time()
            self._later = self._loop.call_later(LOOK_S, self._look)
        self._note(more=1)

    def _note(self, more: int = 0) -> None:
        # What is unread grows with each order, unless some were taken.
        unread = self._tube.unread_bytes()
        if unread < self._unread + more:
            self._taken_at_s = self._loop.time()
            if self._stalled:
                self._stalled = False
                self._publish(DeviceTakesOrders(self._vm, self._pid))
        self._unread = unread

    def _look(self) -> None:
        self._later = None
        self._note()
        waits_s = self._loop.time() - self._taken_at_s
        if not self._stalled and self._unread and waits_s >= STALLED_S:
            self._stalled = True
            self._publish(DeviceStalled(self._vm, self._pid))
        if self._unread:
            self._later = self._loop.call_later(LOOK_S, self._look)

    def end(self) -> None:
        """Looks no more."""
        if self._later is not None:
            self._later.cancel()
