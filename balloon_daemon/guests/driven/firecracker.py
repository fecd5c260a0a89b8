"""Drives the balloon of a Firecracker microVM through its API socket.

What the API lacks, and what follows:

- **Statistics** exist only where the balloon had a ``stats_polling_interval_s`` above 0 before
  boot; nobody can switch them on later. Without them the balloon's size cannot be read at all, and
  its target counts as its size.
- Statistics carry no time, and Firecracker repeats the last ones until the guest sends others. So
  only statistics that differ from those read before count as new.
- The balloon's size is set as an **amount** in whole MiB. A target is rounded down, so that no
  guest gives more than it was asked for.
- While **no driver** listens, setting the amount is refused, which only the text of the error
  shows. The amount is then set again with each sample, until a driver has taken it.
- Memory that is **plugged in** (virtio-mem, 1.14 and newer) does not count as part of the VM's
  size: balloond takes no more than from a VM that has only the memory of its boot.
- **Free page hinting** (1.14 and newer) is never started: the guest may use a hinted page again
  before Firecracker removes it. Firecracker would not notice, and the page's new content would be
  lost. Free page reporting needs no calls from balloond.

Source: src/firecracker/swagger/firecracker.yaml of 1.12.1 and of 1.17.0-dev (2026-08).
"""

import math
import time
from dataclasses import replace

from balloon_daemon.guests.driven.answers import (
    Renewal,
    flag,
    member,
    named_stats,
    nonsense,
    shown,
    whole_number,
)
from balloon_daemon.guests.driven.control import ControlError, Fault, Found, Noticed, Sample
from balloon_daemon.guests.driven.http import HttpConnection
from balloon_daemon.guests.seam import Ability, GuestState
from balloon_daemon.units import MIB, MOST_MEMORY_BYTES, PAGE_SIZE

_STATES = {
    "Not started": GuestState.NO_DRIVER,
    "Running": GuestState.RUNNING,
    "Paused": GuestState.PAUSED,
}

_NO_DRIVER_YET = ("not activated", "before starting")
"""Firecracker's error has one of these texts when no driver listens or the VM is not started."""

_MOST_INTERVAL_S = 0xFFFF


class FirecrackerControl:
    """One microVM, by its API socket.

    Args:
        path: the socket's path (``--api-sock``).
    """

    def __init__(self, path: str) -> None:
        self._http = HttpConnection(path)
        self._vm_mem_bytes = 0
        self._target_mib = 0
        self._refused_mib: int | None = None
        """The amount to set again once a driver listens; None: the last one was taken."""
        self._plugs = False
        self._started = False
        self._listens = False
        """Whether a driver is known to listen: it has taken an amount or sent statistics."""
        self._renewal = Renewal()
        self._interval_s = self._found_interval_s = 0
        """The statistics' period now, and as balloond has found it; 0: there are no statistics."""
        self._wanted_s: int | None = None
        """A period that is still to be set; None: nothing is to be set."""

    async def open(self, noticed: Noticed) -> Found:
        await self._http.open()
        state = await self._state()
        can = await self._read_config()
        sample = await self._sample_in(state)
        return Found(self._vm_mem_bytes, sample.balloon_bytes, sample.state, can, self._http.pid)

    async def set_balloon(self, balloon_bytes: int) -> None:
        self._refused_mib = balloon_bytes // MIB
        await self._set_amount(self._refused_mib)

    async def sample(self) -> Sample:
        state = await self._state()
        if not self._started:
            # The configuration may still change before the VM is started.
            await self._read_config()
        elif self._refused_mib is not None:
            await self._set_amount(self._refused_mib)
        sample = await self._sample_in(state)
        await self._set_interval()
        return sample

    async def watch(self, every_s: float | None) -> None:
        # Never set a longer period than the one found: somebody else may rely on it.
        self._wanted_s = self._found_interval_s
        if every_s is not None:
            self._wanted_s = min(self._wanted_s, max(1, math.floor(every_s)))
        await self._set_interval()

    async def gone(self) -> ControlError:
        return await self._http.gone()

    def close(self) -> None:
        self._http.close()

    async def _state(self) -> GuestState:
        state = member(await self._http.get("/"), "state")
        if not isinstance(state, str) or state not in _STATES:
            raise nonsense("state", state)
        self._started = state != "Not started"
        return _STATES[state]

    async def _read_config(self) -> frozenset[Ability]:
        can = self._take_config(await self._http.get("/vm/config"))
        self._plugs = await self._read_plugged() is not None
        return can

    def _take_config(self, config: object) -> frozenset[Ability]:
        """Reads the answer of /vm/config. Only the figures read are kept while another call is
        waited for, not the parsed answer: CPython takes up to 30 bytes for each byte of JSON."""
        balloon, machine = member(config, "balloon"), member(config, "machine-config")
        if balloon is None:
            raise ControlError(Fault.NO_BALLOON)
        if (huge_pages := member(machine, "huge_pages")) not in (None, "None"):
            raise ControlError(Fault.HUGETLB, shown(huge_pages))
        most_mib = MOST_MEMORY_BYTES // MIB
        self._vm_mem_bytes = whole_number(machine, "mem_size_mib", most_mib, least=1) * MIB
        self._target_mib = whole_number(balloon, "amount_mib", self._vm_mem_bytes // MIB)
        interval_s = whole_number(balloon, "stats_polling_interval_s", _MOST_INTERVAL_S)
        self._interval_s = self._found_interval_s = interval_s
        has = {
            Ability.STATS: interval_s > 0,
            Ability.DEFLATE_ON_OOM: flag(balloon, "deflate_on_oom"),
        }
        return frozenset(ability for ability in has if has[ability])

    async def _read_plugged(self) -> int | None:
        """How much memory is plugged in, in bytes; None: the VM has no virtio-mem."""
        try:
            answer = await self._http.get("/hotplug/memory")
        except ControlError as err:
            if err.fault is Fault.REFUSED:
                return None
            raise
        return whole_number(answer, "plugged_size_mib", MOST_MEMORY_BYTES // MIB) * MIB

    async def _set_amount(self, amount_mib: int) -> None:
        try:
            await self._http.change("PATCH", "/balloon", {"amount_mib": amount_mib})
        except ControlError as err:
            if err.fault is Fault.REFUSED and any(words in err.detail for words in _NO_DRIVER_YET):
                self._listens = False
                return
            self._refused_mib = None
            raise
        self._listens, self._refused_mib, self._target_mib = True, None, amount_mib

    async def _set_interval(self) -> None:
        # Set the period only while a driver listens: Firecracker then returns the statistics
        # buffer to the driver, which fills the buffer anew at once.
        if self._wanted_s is None or not (self._interval_s and self._listens):
            return
        wanted_s, self._wanted_s = self._wanted_s, None
        if wanted_s != self._interval_s:
            interval = {"stats_polling_interval_s": wanted_s}
            await self._http.change("PATCH", "/balloon/statistics", interval)
            self._interval_s = wanted_s

    async def _sample_in(self, state: GuestState) -> Sample:
        actual_bytes, stats = self._target_mib * MIB, None
        plugged_bytes = await self._read_plugged() if self._plugs else None
        listens = self._started and self._refused_mib is None
        if self._started and self._interval_s:
            answer = await self._http.get("/balloon/statistics")
            actual_bytes = PAGE_SIZE * whole_number(
                answer, "actual_pages", self._vm_mem_bytes // PAGE_SIZE
            )
            stats = named_stats(answer, time.monotonic())
            self._listens |= stats is not None or actual_bytes > 0
            listens = self._listens
        if stats is not None and not self._renewal.seen(replace(stats, at_s=0.0)):
            stats = None
        return Sample(
            self._vm_mem_bytes,
            actual_bytes if listens else None,
            state if listens else GuestState.NO_DRIVER,
            stats,
            time.monotonic(),
            plugged_bytes or 0,
        )
