"""QEMU's own balloon, by its monitor (QMP): a ``Control``.

Runs in the controller. No other module needs to know QEMU's quirks: the command ``balloon`` takes
the VM's size without its balloon, refuses 0, and takes a size above the VM's as an empty balloon;
QEMU reports figures from before a reset (``qmp_balloon.py``); and it accepts a balloon where the
balloon frees nothing, on hugetlbfs or beside VFIO.
"""

import asyncio
import time
from functools import partial
from typing import Any, TypeVar

from balloon_daemon.events.driven import Fault
from balloon_daemon.guests.driven import qmp_answers as answers
from balloon_daemon.guests.driven import vmm_process
from balloon_daemon.guests.driven.claims import SocketId
from balloon_daemon.guests.driven.control import (
    ControlError,
    Found,
    Notice,
    Noticed,
    Sample,
)
from balloon_daemon.guests.driven.qmp_answers import GuestStats
from balloon_daemon.guests.driven.qmp_balloon import QmpBalloon
from balloon_daemon.guests.driven.qmp_interval import StatsInterval
from balloon_daemon.guests.driven.qmp_memory import find_memory
from balloon_daemon.guests.driven.qmp_wire import Event, Monitor, Question, property_of
from balloon_daemon.guests.seam import Ability, GuestState, Stats
from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.units import MIB, PAGE_SIZE

CONFIRM_AFTER_S = 0.1
"""How soon a size that may be half written is read again: a driver writes its four bytes within
microseconds, unless the host preempts its virtual CPU."""

_EVENTS_OF_MIGRATIONS = {"capabilities": [{"capability": "events", "state": True}]}
"""Makes QEMU send MIGRATION events. QEMU sends no other event for a migration that is cancelled
before the VM is stopped, and query-migrate gives the same answer after each such migration."""

_INTERVAL = "guest-stats-polling-interval"
_LISTS = ("/machine/peripheral", "/machine/peripheral-anon")

_NEWS = {
    "BALLOON_CHANGE", "STOP", "RESUME", "SUSPEND", "SUSPEND_DISK", "WAKEUP", "DEVICE_DELETED",
    "ACPI_DEVICE_OST", "MEMORY_DEVICE_SIZE_CHANGE",
}  # fmt: skip
"""QMP events after which a VM's figures may have changed."""

_READS_MEMORY = {"RESUME", "DUMP_COMPLETED"}
"""Events before which all of the guest's memory may have been read or written. RESUME is the only
event after a snapshot was loaded, when the VM is made to run again."""


T = TypeVar("T")


def least_bytes(size_bytes: int, *, deflate_on_oom: bool) -> int:
    """The least memory that a guest keeps, whatever the target.

    Of all sizes for the VM QEMU refuses only 0 bytes. QEMU keeps the target over a reset, so the
    next kernel has to give that memory while it boots. If its driver does not deflate on OOM, the
    kernel then kills processes. Such a guest keeps more: a quarter of its size, as with the
    profile careful. For a VM of over 4 GiB that is more than the 1 GiB that the profile seed
    leaves, so the balloon stays smaller than seed's target.
    """
    if deflate_on_oom:
        return min(64 * MIB, size_bytes // 2)
    return min(max(size_bytes // 4, 256 * MIB), size_bytes // 2)


class _Figures(NamedTuple):
    """The questions about the balloon that each sample asks."""

    stats: Question[GuestStats]
    balloon: Question[int]
    status: Question[bool]


class QmpControl:
    """One VM's balloon, by its QEMU's monitor.

    Args:
        path: the monitor's socket.
        identity: the device and inode numbers that the socket must have; None: any.
    """

    def __init__(self, path: str, identity: SocketId | None = None) -> None:
        self._address = path, identity
        self._monitor: Monitor | None = None
        self._noticed: Noticed = lambda notice: None
        self._balloon = QmpBalloon()
        self._device = ""
        self._deflate_on_oom = False
        self._base_bytes = 0
        self._plugs = True
        self._tells_of_migrations = False
        self._interval = StatsInterval()
        self._last_update = 0
        self._saved: int | None = None

    async def open(self, noticed: Noticed) -> Found:
        """Connects to the monitor, and finds out about the VM (``Control``)."""
        self._monitor = await Monitor.connect(*self._address, self._heard)
        self._noticed = noticed
        try:
            return await self._find()
        except BaseException:
            self.close()
            raise

    async def set_balloon(self, balloon_bytes: int) -> None:
        """Sets the balloon's wanted size (``Control``); the guest keeps at least ``least_bytes``.

        The size of a machine with slots for DIMMs may have changed, so it is read anew first.
        """
        size = self._base_bytes
        if self._plugs:
            size += (await self._answer_to(_dimms())).dimm_bytes
        least = least_bytes(size, deflate_on_oom=self._deflate_on_oom)
        # Round up to whole pages, as QEMU does.
        value = -(-max(size - balloon_bytes, least) // PAGE_SIZE) * PAGE_SIZE
        await self._answer_to(Question("balloon", answers.accepted, {"value": value}))
        self._balloon.told(size - value)

    async def sample(self) -> Sample:
        """Reads the VM's figures (``Control``)."""
        if not self._device and (against := await self._find_device()) is not None:
            self._device = ""  # The next sample looks for devices again.
            raise against
        if not self._tells_of_migrations:
            # QEMU refuses this command during a migration: repeat it with the next sample then.
            self._tells_of_migrations = await self._answer_to(
                Question("migrate-set-capabilities", answers.is_done, _EVENTS_OF_MIGRATIONS)
            )
        # Ask for the statistics first: if an incoming migration ended between the two, they would
        # show a driver, and the size from before the migration would count as its balloon's.
        figures, disks, migration = self._figures(), _disks(), _migration()
        dimms = [_dimms()] * self._plugs
        await self._ask(figures.stats, figures.balloon, figures.status, disks, migration, *dimms)
        self._look_for_saved(migration.value)
        size = self._base_bytes + sum(each.value.dimm_bytes for each in dimms)
        sent = self._take(figures, size)
        state = self._state(figures)
        stats = self._stats(sent, disks)
        await self._set_interval(runs=state is not GuestState.PAUSED)
        apart, known = sum(each.value.apart_bytes for each in dimms), self._balloon.balloon_bytes
        return Sample(size, known, state, stats, time.monotonic(), apart)

    async def watch(self, every_s: float | None) -> None:
        """Sets how often the guest sends statistics (``Control``); in whole seconds."""
        self._interval.want(every_s)
        if self._device:
            await self._set_interval()

    async def gone(self) -> ControlError | None:
        """Waits until the connection has ended; returns why (``Control``)."""
        return None if self._monitor is None else await self._monitor.ended()

    def close(self) -> None:
        """Disconnects at once; the VM keeps its balloon (``Control``)."""
        self._noticed = lambda notice: None
        if self._monitor is not None:
            self._monitor.close()

    # --- finding out -----------------------------------------------------------------------------

    async def _find(self) -> Found:
        """Asks for all that is asked once per connection, and takes the first figures."""
        assert self._monitor is not None
        base = Question("query-memory-size-summary", answers.base_bytes)
        memory = Question("qom-get", answers.can_plug_dimms, property_of("/machine", "memory"))
        cpus = Question("query-cpus-fast", answers.thread_id)
        memdevs = Question("query-memdev", answers.memory_backends)
        uuid = Question("query-uuid", answers.uuid)
        disks, migration = _disks(), _migration()
        await self._ask(base, disks, migration, memory, cpus, memdevs, uuid)
        pid = self._monitor.pid
        if pid is not None and not await vmm_process.has_thread(pid, cpus.value):
            pid = None
        self._base_bytes = base.value
        self._plugs = memory.value
        self._saved = migration.value
        memory_file = await find_memory(self._monitor, memdevs.value, pid)
        against = await self._find_device()
        figures, dimms = self._figures(), _dimms()
        await self._ask(figures.stats, figures.balloon, figures.status, dimms)
        size = self._base_bytes + dimms.value.dimm_bytes
        self._plugs |= dimms.value.apart_bytes > 0
        self._take(figures, size)
        if against is None:
            await self._set_interval()
        can = {
            Ability.STATS: True,
            Ability.DEFLATE_ON_OOM: self._deflate_on_oom,
            Ability.DISK_READS: disks.value is not None,
        }
        return Found(
            size,
            self._balloon.balloon_bytes,
            self._state(figures),
            frozenset(ability for ability, has in can.items() if has),
            pid,
            memory_file,
            uuid.value,
            against=against,
        )

    async def _find_device(self) -> ControlError | None:
        """Finds the balloon device, which may have been plugged in later.

        Returns:
            Why the VM must not be driven, as a device pins its memory; None: it may be driven.

        Raises:
            ControlError: there is no balloon device (``NO_BALLOON``, or ``PINNED`` where a device
                pins the VM's memory).
        """
        lists = [Question("qom-list", answers.devices, {"path": path}) for path in _LISTS]
        await self._ask(*lists)
        found, against = "", None
        for path, listed in zip(_LISTS, lists, strict=True):
            for name, kind in listed.value:
                if kind.startswith(answers.PINNING):
                    against = ControlError(Fault.PINNED, answers.shown(name))
                if kind.startswith(answers.BALLOON):
                    found = f"{path}/{name}"
        if not found:
            raise against or ControlError(Fault.NO_BALLOON)
        deflates = Question("qom-get", answers.is_true, property_of(found, "deflate-on-oom"))
        interval = Question("qom-get", answers.interval_s, property_of(found, _INTERVAL))
        await self._ask(deflates, interval)
        self._deflate_on_oom = deflates.value
        self._interval.found(interval.value)
        self._device = found
        return against

    # --- taking in -------------------------------------------------------------------------------

    def _take(self, figures: "_Figures", size: int) -> GuestStats:
        """Takes in the answers together, as the meaning of each depends on the others.

        Raises:
            ControlError: ``NO_BALLOON``: the device is gone; the next sample looks for a new one.
        """
        try:
            vm_bytes = figures.balloon.value
            sent = figures.stats.value
        except ControlError as err:
            if err.fault is Fault.NO_BALLOON:
                self._device = ""
                self._balloon = QmpBalloon()
            raise
        if vm_bytes > size:
            raise ControlError(Fault.NONSENSE, f"actual: {vm_bytes}")
        self._balloon.passes(time.monotonic(), runs=figures.status.value)
        self._balloon.read(size - vm_bytes, sent.last_update)
        if self._balloon.doubted:
            loop = asyncio.get_running_loop()
            loop.call_later(CONFIRM_AFTER_S, lambda: self._noticed(Notice.CHANGED))
        return sent

    def _state(self, figures: "_Figures") -> GuestState:
        if not figures.status.value:
            return GuestState.PAUSED
        return GuestState.RUNNING if self._balloon.listens else GuestState.NO_DRIVER

    def _stats(self, sent: GuestStats, disks: Question[int | None]) -> Stats | None:
        """The guest's statistics, unless they are those of the last sample."""
        if sent.last_update in (0, self._last_update):
            return None
        now = time.monotonic()
        self._last_update = sent.last_update
        self._interval.came(now)
        # last_update is the time of the host's wall clock in whole seconds, rounded down.
        age_s = max(0.0, time.time() - sent.last_update)
        return sent.at(now - age_s, disks.value)

    async def _set_interval(self, *, runs: bool = False) -> None:
        """Sets the interval of the guest's statistics, where ``StatsInterval`` has one due."""
        listens = self._balloon.listens
        due_s = self._interval.due_s(time.monotonic(), runs=runs, listens=listens)
        if due_s is not None:
            arguments = {"path": self._device, "property": _INTERVAL, "value": due_s}
            await self._answer_to(Question("qom-set", answers.accepted, arguments))
            self._interval.was_set(due_s, time.monotonic())

    def _look_for_saved(self, saved: int | None) -> None:
        if saved not in (None, self._saved):
            self._noticed(Notice.REFILLED)
        self._saved = saved

    # --- the monitor -----------------------------------------------------------------------------

    def _figures(self) -> "_Figures":
        device = property_of(self._device, "guest-stats")
        return _Figures(
            Question("qom-get", answers.guest_stats, device),
            Question("query-balloon", answers.vm_bytes),
            Question("query-status", answers.is_running),
        )

    async def _answer_to(self, question: Question[T]) -> T:
        await self._ask(question)
        return question.value

    async def _ask(self, *questions: Question[Any]) -> None:
        if self._monitor is None:
            raise ControlError(Fault.GONE)
        await self._monitor.ask(*questions)

    def _heard(self, event: Event) -> None:
        if event.name == "RESET":
            if self._balloon.reset(event.at_us):
                self._noticed(Notice.RESET)
        elif event.name == "MIGRATION":
            if answers.ends_migration(event.data):
                self._noticed(Notice.REFILLED)
        elif event.name in _NEWS:
            if event.name == "BALLOON_CHANGE":
                self._balloon.written(event.at_us)
            self._noticed(Notice.CHANGED)
        if event.name in _READS_MEMORY:
            self._noticed(Notice.REFILLED)


_dimms = partial(Question, "query-memory-devices", answers.plugged)
_disks = partial(Question, "query-blockstats", answers.disk_read_bytes)
_migration = partial(Question, "query-migrate", answers.last_saved)
