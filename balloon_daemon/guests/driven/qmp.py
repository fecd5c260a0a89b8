"""QEMU's own balloon, by its monitor (QMP): a ``Control``.

Runs in the controller. No other module needs to know QEMU's quirks: the command ``balloon`` takes
the VM's size without its balloon, refuses 0, and takes a size above the VM's as an empty balloon;
QEMU reports figures from before a reset (``qmp_balloon.py``); and it accepts a balloon where the
balloon frees nothing, on hugetlbfs or beside VFIO.
"""

import asyncio
import os
import time

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
from balloon_daemon.guests.driven.qmp_memory import on_hugetlbfs
from balloon_daemon.guests.driven.qmp_wire import Command, Event, Monitor
from balloon_daemon.guests.seam import Ability, GuestState, Stats
from balloon_daemon.units import MIB, PAGE_SIZE

CONFIRM_AFTER_S = 0.1
"""How soon a size that may be half written is read again: a driver writes its four bytes within
microseconds, unless the host preempts its virtual CPU."""

MAX_BACKENDS = 64
"""How many of QEMU's memory backends are asked about at most."""

_STATUS = Command("query-status")
_BALLOON = Command("query-balloon")
_DISKS = Command("query-blockstats")
_BASE = Command("query-memory-size-summary")
_DIMMS = Command("query-memory-devices")
_MIGRATION = Command("query-migrate")
_TELL_OF_MIGRATIONS = Command(
    "migrate-set-capabilities", {"capabilities": [{"capability": "events", "state": True}]}
)
"""Makes QEMU send MIGRATION events. Of a migration that is cancelled before it stops the VM there
is no other event, and after two of these query-migrate gives the same answer."""
_MAIN_MEMORY = Command("qom-get", {"path": "/machine", "property": "memory-backend"})
_INTERVAL = "guest-stats-polling-interval"
_LISTS = ("/machine/peripheral", "/machine/peripheral-anon")

_NEWS = {
    "BALLOON_CHANGE", "STOP", "RESUME", "SUSPEND", "SUSPEND_DISK", "WAKEUP", "DEVICE_DELETED",
    "ACPI_DEVICE_OST", "MEMORY_DEVICE_SIZE_CHANGE",
}  # fmt: skip
"""Events after which the figures may have changed."""

_READS_MEMORY = {"RESUME", "DUMP_COMPLETED"}
"""Events before which all of the guest's memory may have been read or written. RESUME is the only
event after a snapshot was loaded, when the VM is made to run again."""


def least_bytes(size_bytes: int, *, deflate_on_oom: bool) -> int:
    """The least memory that a guest keeps, whatever the target.

    Of all sizes for the VM QEMU refuses only 0 bytes. It keeps the target over a reset, so the
    next kernel has to give that memory while it boots. If its driver does not deflate on OOM, the
    kernel then kills processes. Such a guest keeps more: a quarter of its size, as with the
    profile careful. For a VM of over 4 GiB that is more than the 1 GiB that the profile seed
    leaves, so the balloon stays smaller than seed's target.
    """
    if deflate_on_oom:
        return min(64 * MIB, size_bytes // 2)
    return min(max(size_bytes // 4, 256 * MIB), size_bytes // 2)


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
        self._saved: object = None

    async def open(self, noticed: Noticed) -> Found:
        """As ``Control`` says."""
        self._monitor = await Monitor.connect(*self._address, self._heard)
        self._noticed = noticed
        try:
            return await self._find()
        except BaseException:
            self.close()
            raise

    async def set_balloon(self, balloon_bytes: int) -> None:
        """As ``Control`` says; the guest keeps at least ``least_bytes``.

        The size of a machine with slots for DIMMs may have changed, so it is read anew first.
        """
        size = self._base_bytes
        if self._plugs:
            (dimms,) = await self._ask(_DIMMS)
            size += answers.dimm_bytes(dimms)
        least = least_bytes(size, deflate_on_oom=self._deflate_on_oom)
        # Round up to whole pages, as QEMU does.
        value = -(-max(size - balloon_bytes, least) // PAGE_SIZE) * PAGE_SIZE
        (answer,) = await self._ask(Command("balloon", {"value": value}))
        answers.accepted(answer)
        self._balloon.told(size - value)

    async def sample(self) -> Sample:
        """As ``Control`` says."""
        if not self._device:
            await self._find_device()
        if not self._tells_of_migrations:
            (answer,) = await self._ask(_TELL_OF_MIGRATIONS)
            # QEMU refuses this command during a migration: repeat it with the next sample then.
            self._tells_of_migrations = not isinstance(answer, answers.Refusal)
        # Ask for the statistics first: if an incoming migration ended between the two, they would
        # show a driver, and the size from before the migration would count as its balloon's.
        asked = [self._get("guest-stats"), _BALLOON, _STATUS, _DISKS, _MIGRATION]
        asked += [_DIMMS] * self._plugs
        stats, balloon, status, disks, migration, *dimms = await self._ask(*asked)
        self._look_for_saved(migration)
        size = self._base_bytes + sum(map(answers.dimm_bytes, dimms))
        sent = self._take(balloon, stats, status, size)
        state = self._state(status)
        figures = self._stats(sent, disks)
        await self._set_interval(runs=state is not GuestState.PAUSED)
        apart, known = sum(map(answers.apart_bytes, dimms)), self._balloon.balloon_bytes
        return Sample(size, known, state, figures, time.monotonic(), apart)

    async def watch(self, every_s: float | None) -> None:
        """As ``Control`` says; QEMU counts in whole seconds."""
        self._interval.want(every_s)
        if self._device:
            await self._set_interval()

    async def gone(self) -> ControlError | None:
        """As ``Control`` says."""
        return None if self._monitor is None else await self._monitor.ended()

    def close(self) -> None:
        """As ``Control`` says."""
        self._noticed = lambda notice: None
        if self._monitor is not None:
            self._monitor.close()

    # --- finding out -----------------------------------------------------------------------------

    async def _find(self) -> Found:
        """Asks for all that is asked once per connection, and takes the first figures."""
        assert self._monitor is not None
        base, disks, migration, memory, cpus, memdevs, uuid = await self._ask(
            *(_BASE, _DISKS, _MIGRATION, _get("/machine", "memory")),
            *(Command("query-cpus-fast"), Command("query-memdev"), Command("query-uuid")),
        )
        pid = self._monitor.pid
        if pid is not None and not await vmm_process.has_thread(pid, answers.thread_id(cpus)):
            pid = None
        self._base_bytes = answers.base_bytes(base)
        self._plugs = answers.can_plug_dimms(memory)
        self._saved = answers.last_saved(migration)
        memory_file = await self._find_memory(answers.memory_backends(memdevs), pid)
        await self._find_device()
        stats, balloon, status, dimms = await self._ask(
            self._get("guest-stats"), _BALLOON, _STATUS, _DIMMS
        )
        size = self._base_bytes + answers.dimm_bytes(dimms)
        self._plugs |= answers.apart_bytes(dimms) > 0
        self._take(balloon, stats, status, size)
        await self._set_interval()
        can = {
            Ability.STATS: True,
            Ability.DEFLATE_ON_OOM: self._deflate_on_oom,
            Ability.DISK_READS: answers.disk_read_bytes(disks) is not None,
        }
        return Found(
            size,
            self._balloon.balloon_bytes,
            self._state(status),
            frozenset(ability for ability, has in can.items() if has),
            pid,
            memory_file,
            answers.uuid(uuid),
        )

    async def _find_device(self) -> None:
        """Finds the balloon device, which may have been plugged in later.

        Raises:
            ControlError: there is none, or a device pins the VM's memory.
        """
        lists = await self._ask(*(Command("qom-list", {"path": path}) for path in _LISTS))
        found = ""
        for path, listed in zip(_LISTS, lists, strict=True):
            for name, kind in answers.devices(listed):
                if kind.startswith(answers.PINNING):
                    raise ControlError(Fault.PINNED, answers.shown(name))
                if kind.startswith(answers.BALLOON):
                    found = f"{path}/{name}"
        if not found:
            raise ControlError(Fault.NO_BALLOON)
        deflates, interval = await self._ask(_get(found, "deflate-on-oom"), _get(found, _INTERVAL))
        self._deflate_on_oom = deflates is True
        self._interval.found(answers.interval_s(interval))
        self._device = found

    async def _find_memory(self, backends: list[str], pid: int | None) -> str:
        """The path in /proc of the file that is the VM's memory; "": none is, or several are.

        Raises:
            ControlError: the memory is in huge pages of hugetlbfs. QEMU frees a huge page only
                when 1 MiB of balloon pages in a row has all of the huge page's 4 KiB pages.
        """
        paths = [f"/objects/{name}" for name in backends[:MAX_BACKENDS]]
        main, *kinds = await self._ask(_MAIN_MEMORY, *(_get(path, "type") for path in paths))
        huge = await self._ask(*(_get(path, "hugetlb") for path in paths))
        files = await self._ask(*(_get(path, "mem-path") for path in paths))
        found = {}
        in_files = [file if isinstance(file, str) else "" for file in files]
        pooled = on_hugetlbfs(filter(None, in_files))
        for each, kind, is_huge, file in zip(paths, kinds, huge, in_files, strict=True):
            if is_huge is True or file in pooled:
                raise ControlError(Fault.HUGETLB, answers.shown(os.path.basename(each)))
            if file or kind == "memory-backend-memfd":  # QEMU names a memfd by its object's type.
                found[each] = file or f"/memfd:{kind}"
        # ``main`` is "" where several NUMA nodes have each a memory backend of its own.
        is_other = isinstance(main, str) and main and main not in found
        if pid is None or len(found) != 1 or is_other:
            return ""
        opened = await vmm_process.open_files(pid, [*found.values()])
        return opened.found[0].path if opened.found else ""

    # --- taking in -------------------------------------------------------------------------------

    def _take(self, balloon: object, stats: object, status: object, size: int) -> GuestStats:
        """Takes in the answers together, as the meaning of each depends on the others.

        Raises:
            ControlError: ``NO_BALLOON``: the device is gone; the next sample looks for a new one.
        """
        try:
            vm_bytes = answers.vm_bytes(balloon, size)
            sent = answers.guest_stats(stats)
        except ControlError as err:
            if err.fault is Fault.NO_BALLOON:
                self._device = ""
                self._balloon = QmpBalloon()
            raise
        self._balloon.passes(time.monotonic(), runs=answers.is_running(status))
        self._balloon.read(size - vm_bytes, sent.last_update)
        if self._balloon.doubted:
            loop = asyncio.get_running_loop()
            loop.call_later(CONFIRM_AFTER_S, lambda: self._noticed(Notice.CHANGED))
        return sent

    def _state(self, status: object) -> GuestState:
        if not answers.is_running(status):
            return GuestState.PAUSED
        return GuestState.RUNNING if self._balloon.listens else GuestState.NO_DRIVER

    def _stats(self, sent: GuestStats, disks: object) -> Stats | None:
        """The guest's statistics, unless they are those of the last sample."""
        if sent.last_update in (0, self._last_update):
            return None
        now = time.monotonic()
        self._last_update = sent.last_update
        self._interval.came(now)
        # last_update is the time of the host's wall clock in whole seconds, rounded down.
        age_s = max(0.0, time.time() - sent.last_update)
        return sent.at(now - age_s, answers.disk_read_bytes(disks))

    async def _set_interval(self, *, runs: bool = False) -> None:
        """Sets the interval of the guest's statistics, where ``StatsInterval`` has one due."""
        listens = self._balloon.listens
        due_s = self._interval.due_s(time.monotonic(), runs=runs, listens=listens)
        if due_s is not None:
            arguments = {"path": self._device, "property": _INTERVAL, "value": due_s}
            (answer,) = await self._ask(Command("qom-set", arguments))
            answers.accepted(answer)
            self._interval.was_set(due_s, time.monotonic())

    def _look_for_saved(self, migration: object) -> None:
        saved = answers.last_saved(migration)
        if saved not in (None, self._saved):
            self._noticed(Notice.REFILLED)
        self._saved = saved

    # --- the monitor -----------------------------------------------------------------------------

    def _get(self, name: str) -> Command:
        return _get(self._device, name)

    async def _ask(self, *commands: Command) -> list[object]:
        if self._monitor is None:
            raise ControlError(Fault.GONE)
        return await self._monitor.ask(*commands)

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


def _get(path: str, name: str) -> Command:
    return Command("qom-get", {"path": path, "property": name})
