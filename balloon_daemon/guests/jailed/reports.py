"""Handles the reports of one guest's devices: untrusted numbers, which are summed and
published."""

import asyncio
from typing import Protocol, assert_never

from balloon_daemon.events import DeviceReady, GuestStats, Publish
from balloon_daemon.guests import seam
from balloon_daemon.guests.jailed.device_events import fault_event, stat_name
from balloon_daemon.guests.jailed.life import Life
from balloon_daemon.guests.jailed.statistics import named_stats
from balloon_daemon.rate_limit import RateLimit
from balloon_daemon.tube.messages import Fault, Progress, Ready, Stats, Stopped, Up
from balloon_daemon.units import VmId
from balloon_daemon.vhost_user.backend import Backend

FAULTS_A_SECOND = 10
"""Faults of one guest that are published in a second; the others are counted."""

STATS_A_SECOND = 4
"""Statistics of one guest that are used in a second; the others are dropped."""


class Hears(Protocol):
    """Takes the devices' reports about their guest."""

    def progressed(self, done: Progress) -> None:
        """Takes the counters of this guest's devices so far, added up."""

    def stats_came(self, stats: seam.Stats, *, first: bool) -> None:
        """Takes the guest's statistics; the first statistics of each device may be old."""


class Reports:
    """Handles the reports of one guest's devices, one device after another.

    Args:
        vm: the guest's VM.
        publish: takes events.
        hears: takes progress and statistics.
        backend: takes each ring's last ``used.idx``.
        life: is told that each ring's ``used.idx`` is known.
    """

    def __init__(
        self, vm: VmId, publish: Publish, hears: Hears, backend: Backend, life: Life
    ) -> None:
        self._vm = vm
        self._publish = publish
        self._hears = hears
        self._backend = backend
        self._life = life
        self._loop = asyncio.get_running_loop()
        self._before, self._now = Progress(), Progress()
        self._had_stats = False
        self._faults = RateLimit(FAULTS_A_SECOND)
        self._stats = RateLimit(STATS_A_SECOND)

    def begin(self) -> None:
        """Notes that another device was forked."""
        self._before, self._now = self._before.plus(self._now), Progress()
        self._had_stats = False

    def take(self, report: Up) -> None:
        """Handles one report."""
        match report:
            case Ready():
                self._publish(DeviceReady(self._vm))
            case Progress():
                self._now = report
                self._hears.progressed(self._before.plus(report))
            case Stats():
                self._take_stats(report)
            case Fault():
                self._take_fault(report)
            case Stopped(indices):
                self._backend.rings_stood_at(indices)
                self._life.know_rings(known=True)
            case _:
                assert_never(report)

    def _take_stats(self, stats: Stats) -> None:
        # Drop statistics beyond the rate limit before anything uses them. A device that its guest
        # has taken over could send contradicting statistics, each of which would change the VM's
        # size and cause its state to be stored again.
        now_s = self._loop.time()
        if self._stats.admit(now_s) is None:
            return
        first, self._had_stats = not self._had_stats, True
        self._hears.stats_came(named_stats(stats.entries, now_s), first=first)
        values = tuple((stat_name(tag), value) for tag, value in stats.entries)
        self._publish(GuestStats(self._vm, values))

    def _take_fault(self, fault: Fault) -> None:
        # Each device limits its fault reports itself, but a device that its guest has taken over
        # does not: limit them here too.
        suppressed = self._faults.admit(self._loop.time())
        if suppressed is None:
            return
        queue = next(
            (v.queue.value for v in self._backend.ready_vrings() if v.index == fault.queue),
            f"vring {fault.queue}",
        )
        self._publish(fault_event(self._vm, fault, queue, suppressed))
