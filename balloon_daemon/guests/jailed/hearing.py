"""Reads one device's reports at a bounded rate, and watches whether the device reads its orders.

A guest may take its device over at any moment. All guests share one event loop, so a device that
floods its tube (the socketpair to the controller) would cost the other guests time: a tube with
more reports than a working device sends is not read for a while. The device's writes then fail
with EAGAIN. Nor are the tubes of a user's devices read while all of them together have used up
that user's share of the loop's time: hundreds of devices that each send no more than they may
would otherwise leave none to others.
"""

import asyncio
from collections.abc import Callable

from balloon_daemon.events import DeviceStalled, DeviceTakesOrders, Publish
from balloon_daemon.tube.connection import ControllerEnd
from balloon_daemon.tube.messages import Up
from balloon_daemon.units import VmId

REPORTS_A_SECOND = 200
"""How many reports of one device are read in a second, or at once after a second without reports.
A device sends some 40 a second when its guest does all that it can."""

PAUSE_S = 0.1
"""How long a tube with more reports than ``REPORTS_A_SECOND`` is not read."""

LAST_READS = 512
"""How many times a dead device's tube is read at most, 64 reports each time: more than the
socket's buffer holds."""

STALLED_S = 5.0
"""A device that has read no order for so long is published as stalled. It is not killed: on a
starved host or in a frozen cgroup the next device would stall too, and six deaths end a VM's
balloon; and a user who may send SIGSTOP to this device may send it to the next one as well."""

CLOSED_S = 1.0
"""A device that was not told to stop is killed if it has not ended so many seconds after it has
closed its end of the tube: it can be told no target any more. A device that is in order closes its
tube only as it ends."""

LOOK_S = 1.0
"""How often the tube's unread bytes are checked while there are any."""


class ReportReader:
    """Reads a device's reports.

    Args:
        tube: the controller's end of its tube.
        take: called with each report.
        garbage: called once, with a description, for a message that no device sends; the tube is
            not read after that.
        charge: charges seconds of the loop to the device's user; returns for how many seconds no
            report of that user's devices is to be read.
        closed: called once the device's end of the tube is closed and all reports are read.
    """

    def __init__(
        self,
        tube: ControllerEnd,
        take: Callable[[Up], None],
        garbage: Callable[[str], None],
        charge: Callable[[float], float],
        closed: Callable[[], None],
    ) -> None:
        self._tube = tube
        self._closed = closed
        self._charge = charge
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
        # Ask whether the user has time left before reading: where hundreds of its devices have
        # reports at once, the first of them may use up that time.
        rest_s = self._charge(0.0)
        if self._room > 0 and not rest_s:
            self._room -= self.read()
            rest_s = self._charge(self._loop.time() - now)
        if self._tube.at_end:
            self._closed()
        if self._tube.at_end or self._tube.garbage is not None:
            return
        if self._room <= 0 or rest_s:
            self._loop.remove_reader(self._tube.fileno())
            self._pause = self._loop.call_later(max(rest_s, PAUSE_S), self._hear)
        elif paused:
            self._loop.add_reader(self._tube.fileno(), self._hear)

    def rest_no_more(self) -> None:
        """Reads the reports of a device that was told to stop, however much of the loop's time its
        user has used: its last report has each ring's ``used.idx``."""
        self._charge = lambda spent_s: 0.0
        if self._pause is not None:
            self._pause.cancel()
            self._pause = self._loop.call_later(PAUSE_S, self._hear)

    def read(self) -> int:
        """Reads waiting reports; returns how many."""
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
        """Reads the reports that a dead device has left in its tube, then stops reading.

        The number of reads is bounded: if another process (a forked copy of the device) has the
        device's end open, the tube never reaches its end of file.
        """
        if self._pause is not None:
            self._pause.cancel()
        for _ in range(LAST_READS):
            if self._tube.garbage is not None or not self.read():
                break
        self._loop.remove_reader(self._tube.fileno())


class OrderWatch:
    """Notices a device that reads no orders, because it is stopped, hangs, or gets no processor
    time.

    Args:
        vm: its VM.
        pid: its process id.
        tube: the controller's end of its tube.
        publish: takes events.
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
        """Notes that an order was sent, which the device has to read."""
        if self._later is None:
            self._taken_at_s = self._loop.time()
            self._later = self._loop.call_later(LOOK_S, self._look)
        self._note(more=1)

    def _note(self, more: int = 0) -> None:
        # Each order that was sent (``more``) adds at least one byte to those that the device has
        # not read yet. If there are now fewer than the earlier bytes plus ``more``, the device has
        # read some orders meanwhile.
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
        """Stops watching."""
        if self._later is not None:
            self._later.cancel()
