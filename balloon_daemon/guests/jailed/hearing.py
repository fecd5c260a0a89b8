"""Hears one device: its reports at a bounded rate, and whether it takes its orders.

A guest may take its device over at any moment. All guests share one event loop, so a device that
floods its tube would cost the other guests time: a tube with more reports than a working device
sends is not read for a moment. Writes of that device then fail with EAGAIN.
"""

import asyncio
from collections.abc import Callable

from balloon_daemon.events import DeviceStalled, DeviceTakesOrders, Publish
from balloon_daemon.tube.connection import ControllerEnd
from balloon_daemon.tube.messages import Up
from balloon_daemon.units import VmId

REPORTS_A_SECOND = 200
"""Reports of one device that are read in a second, or at once after a silence. A device sends some
40 when its guest does all that it can."""

PAUSE_S = 0.1
"""For how long a tube with more reports is not read."""

LAST_READS = 512
"""Reads of a dead device's tube, of 64 reports each: more than the socket's buffer holds."""

STALLED_S = 5.0
"""A device that has taken no order for so long is published as stalled. It is not killed: on a
starved host or in a frozen cgroup the next device would stall too, and six deaths end a VM's
balloon; whoever may send it SIGSTOP may send it to the next one as well."""

LOOK_S = 1.0
"""How often the tube's unread bytes are looked at while there are any."""


class ReportReader:
    """Reads a device's reports.

    Args:
        tube: leads to it.
        take: gets each report.
        garbage: called once, with a description, when something comes that no device sends; the
            tube is not read after that.
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
        """Takes the reports that a dead device has left in its tube, and reads no more.

        The number of reads is bounded: where another process (a forked device's copy) holds the
        device's end too, the tube never comes to its end.
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
        """An order was sent: the device has to read it."""
        if self._later is None:
            self._taken_at_s = self._loop.time()
            self._later = self._loop.call_later(LOOK_S, self._look)
        self._note(more=1)

    def _note(self, more: int = 0) -> None:
        # Each order adds to the unread bytes; fewer than that means that the device has read some.
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
