"""Reads and moves the balloon of one of libvirt's domains."""

import asyncio
from dataclasses import replace

from balloon_daemon.guests.driven.control import (
    ControlError,
    Fault,
    Found,
    Notice,
    Noticed,
    Sample,
)
from balloon_daemon.guests.driven.qmp_balloon import QmpBalloon
from balloon_daemon.guests.libvirt import qemu_process, wire
from balloon_daemon.guests.libvirt.client import Client
from balloon_daemon.guests.libvirt.connection import Connection
from balloon_daemon.guests.libvirt.wire import Event, Figures, Happened
from balloon_daemon.guests.seam import Ability, GuestState, Stats

LATE_EVENT_US = 1_500_000
"""QEMU delays BALLOON_CHANGE by up to 1 s, and libvirt's event does not carry QEMU's time: an
event that comes so soon after a reset may tell of a change before the reset."""

READ_AGAIN_S = 0.1
"""How soon to read a doubtful size again: a legacy virtio driver has written all of it by then."""

MISSED = 3
"""After so many periods without new statistics the period is set again: virt-manager sets one of
its own when it connects, and an administrator may (``virsh dommemstat --period``)."""

_KIB = 1024


class DomainControl:
    """One domain's balloon, by way of libvirt's client. Implements ``Control``
    (``driven/control.py``).

    Args:
        connection: the connection to the domain's libvirt.
        name: the domain's name.
    """

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection = connection
        self._name = name
        self._noticed: Noticed
        self._client: Client
        self._uuid = ""
        self._stopped = asyncio.Event()
        self._balloon = QmpBalloon()
        self._updates = Updates()
        self._told_kib = 0
        self._found_period_s = self._period_s = 0
        self._fresh_s = 0.0
        """When statistics came last, or their period was set."""

    async def open(self, noticed: Noticed) -> Found:
        """Finds the domain. Raises ControlError also where the domain does not run."""
        self._noticed = noticed
        client = self._client = await self._connection.client(self._name)
        content = await client.call("open", {"name": self._name}, self._name)
        self._uuid = wire.decode_uuid(content)
        self._connection.listen(self._uuid, self._happened)
        figures = wire.decode_figures(content)
        if figures.against is Fault.NO_BALLOON:
            raise ControlError(figures.against)
        self._found_period_s = figures.period_s
        uri = self._connection.uri
        pid = await qemu_process.find_pid(uri, self._name, self._uuid)
        sample = await self._take(figures)
        can = {
            Ability.STATS: True,
            Ability.DEFLATE_ON_OOM: figures.deflate_on_oom,
            Ability.DISK_READS: figures.counts_disk_reads,
        }
        return Found(
            sample.vm_mem_bytes,
            sample.balloon_bytes,
            sample.state,
            frozenset(ability for ability, has in can.items() if has),
            pid,
            "" if pid is None else await qemu_process.find_memory_file(pid),
            self._uuid,
            figures.restored,
            None if figures.against is None else ControlError(figures.against),
        )

    async def set_balloon(self, balloon_bytes: int) -> None:
        """Sets the balloon's wanted size; libvirt returns before the guest has done anything."""
        await self._call("set", balloon_kib=balloon_bytes // _KIB, told_kib=self._told_kib)
        self._balloon.told(balloon_bytes)

    async def sample(self) -> Sample:
        """Reads the domain's figures."""
        sample = await self._take(await self._figures())
        if sample.stats is not None:
            self._fresh_s = sample.at_s
        elif (
            self._period_s
            and sample.state is GuestState.RUNNING
            and sample.at_s - self._fresh_s > MISSED * self._period_s
        ):
            try:
                await self._set_period(self._period_s)
            except ControlError as err:
                # libvirt saves, dumps or migrates the domain: set the period after a later sample.
                if err.fault is not Fault.REFUSED:
                    raise
        return sample

    async def watch(self, every_s: float | None) -> None:
        """Sets the period of the guest's statistics; None: the period that was found."""
        self._period_s = 0 if every_s is None else max(1, round(every_s))
        await self._set_period(self._period_s or self._found_period_s)

    async def _set_period(self, period_s: int) -> None:
        await self._call("period", period_s=period_s)
        self._fresh_s = asyncio.get_running_loop().time()

    async def gone(self) -> None:
        """Waits until the domain has ended, or libvirt's client has."""
        ended = asyncio.ensure_future(self._client.ended())
        stopped = asyncio.ensure_future(self._stopped.wait())
        try:
            await asyncio.wait([ended, stopped], return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
            stopped.cancel()

    def close(self) -> None:
        """Takes no more events."""
        self._connection.unlisten(self._uuid, self._happened)

    async def _call(self, do: str, **arguments: str | int) -> object:
        # The client allows one call at a time for each domain. Give it the domain's name, as
        # ``open`` does, which does not know the UUID yet: then ``open`` counts, too.
        return await self._client.call(do, {"uuid": self._uuid, **arguments}, self._name)

    async def _figures(self) -> Figures:
        figures = wire.decode_figures(await self._call("sample"))
        if figures.against is not None:
            raise ControlError(figures.against)
        return figures

    async def _take(self, figures: Figures) -> Sample:
        self._read(figures)
        if self._balloon.doubted:
            await asyncio.sleep(READ_AGAIN_S)
            figures = await self._figures()
            self._read(figures)
        now_s = asyncio.get_running_loop().time()
        self._told_kib = figures.vm_mem_bytes // _KIB
        state = figures.state
        if state is GuestState.RUNNING and not self._balloon.listens:
            state = GuestState.NO_DRIVER
        return Sample(
            figures.vm_mem_bytes,
            self._balloon.balloon_bytes if figures.actual_bytes is not None else None,
            state,
            self._updates.take(figures, now_s),
            now_s,
            figures.apart_bytes,
        )

    def _read(self, figures: Figures) -> None:
        if figures.actual_bytes is not None:
            balloon_bytes = figures.vm_mem_bytes - figures.actual_bytes
            runs = figures.state is GuestState.RUNNING
            self._balloon.passes(asyncio.get_running_loop().time(), runs=runs)
            self._balloon.read(balloon_bytes, figures.updated_s)

    def _happened(self, happened: Happened) -> None:
        now_us = int(asyncio.get_running_loop().time() * 1e6)
        match happened.event:
            case Event.STARTED | Event.CHANGED:
                self._noticed(Notice.CHANGED)
            case Event.STOPPED:
                self._stopped.set()
            case Event.RESET:
                if self._balloon.reset(now_us):
                    self._noticed(Notice.RESET)
            case Event.BALLOON:
                self._balloon.written(now_us - LATE_EVENT_US)
                self._noticed(Notice.CHANGED)
            case Event.REFILLED:
                self._noticed(Notice.REFILLED)


class Updates:
    """Tells a guest's new statistics from old ones, and when they came on CLOCK_MONOTONIC."""

    def __init__(self) -> None:
        self._last: int | None = None
        self._after_s = float("-inf")
        """When the figures were last read."""

    def take(self, figures: Figures, now_s: float) -> Stats | None:
        """The statistics; None: there are none, or they are the last ones again.

        Args:
            figures: the domain's figures.
            now_s: when they were read.
        """
        if figures.stats is None or figures.updated_s == self._last:
            self._after_s = now_s
            return None
        # The statistics' own time is the wall clock's, in whole seconds, and that clock may have
        # been set. They came after the last reading and before this one: limit the time to that.
        at_s = min(now_s, max(self._after_s, now_s - figures.age_s))
        known = self._last is not None or figures.age_s >= 0
        self._last, self._after_s = figures.updated_s, now_s
        return replace(figures.stats, at_s=at_s) if known else None
