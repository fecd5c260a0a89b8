"""What a QEMU monitor answers, made into checked values. Pure.

The values are small, whatever the answer: they are all that is kept of it (``Question``). A VMM is
not trusted: every number must be a whole number in range, or the answer is ``NONSENSE``.
All functions raise ``ControlError`` for an answer that QEMU's schema does not allow, and for a
refusal that they do not mention.

Source: QEMU, qapi/machine.json, qapi/block-core.json, qapi/run-state.json, qapi/migration.json,
docs/interop/virtio-balloon-stats.rst.
"""

from collections.abc import Iterator

from balloon_daemon.errors import printable
from balloon_daemon.events.driven import Fault
from balloon_daemon.guests.driven.control import ControlError
from balloon_daemon.guests.seam import Stats
from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.units import MIB, MOST_MEMORY_BYTES

UNKNOWN = (1 << 64) - 1
"""QEMU's value for a statistic that the guest's driver does not send."""

MAX_SHOWN = 200
"""How many characters of QEMU's words are kept."""

BALLOON = "child<virtio-balloon"
"""Beginning of the types of QEMU's balloon: ``-pci`` in three generations, ``-device`` on
virtio-mmio (microvm)."""

PINNING = ("child<vfio-pci", "child<vhost-vdpa-device")
"""Beginnings of the types of devices that pin all of a guest's memory."""

_FIELDS = {
    "stat-total-memory": "total_bytes",
    "stat-free-memory": "free_bytes",
    "stat-available-memory": "available_bytes",
    "stat-disk-caches": "caches_bytes",
    "stat-swap-in": "swap_in_bytes",
    "stat-swap-out": "swap_out_bytes",
    "stat-major-faults": "major_faults",
    "stat-minor-faults": "minor_faults",
    "stat-htlb-pgalloc": "hugetlb_allocations",
    "stat-htlb-pgfail": "hugetlb_failures",
    "stat-oom-kills": "oom_kills",
    "stat-alloc-stalls": "alloc_stalls",
    "stat-async-scans": "async_scans",
    "stat-direct-scans": "direct_scans",
    "stat-async-reclaims": "async_reclaims",
    "stat-direct-reclaims": "direct_reclaims",
}


MAX_BACKENDS = 64
"""How many of QEMU's memory backends are asked about at most."""

MAX_DEVICES = 64
"""How many balloons and pinning devices are looked at in one list; QEMU has one balloon."""

MAX_PATH = 4096
"""The longest path that Linux opens (PATH_MAX)."""


class Refusal(NamedTuple):
    """The monitor's answer to a command that it did not carry out.

    Attributes:
        kind: QEMU's class of errors, such as ``DeviceNotActive``.
        desc: QEMU's words, printable.
    """

    kind: str
    desc: str


class Plugged(NamedTuple):
    """Memory that was plugged in.

    Attributes:
        dimm_bytes: all DIMMs together, which ``balloon`` counts as part of the VM.
        apart_bytes: the memory that ``balloon`` does not count.
    """

    dimm_bytes: int
    apart_bytes: int


class GuestStats(NamedTuple):
    """The guest's statistics.

    Attributes:
        last_update: when the guest sent them, in seconds of the host's clock; 0: never, as no
            driver listens.
        figures: the statistics, by the field names of ``Stats``.
    """

    last_update: int
    figures: dict[str, int]

    def at(self, at_s: float, disk_read_bytes: int | None) -> Stats:
        """The same as ``Stats``; ``at_s``: when the guest sent them, on CLOCK_MONOTONIC."""
        return Stats(at_s, **self.figures, disk_read_bytes=disk_read_bytes)


def shown(words: str) -> str:
    """QEMU's words, printable and short, for the log."""
    return printable(words[:MAX_SHOWN])


def refused(answer: object) -> ControlError:
    """The error for a refusal, or for an answer that QEMU's schema does not allow."""
    match answer:
        case Refusal("DeviceNotActive" | "DeviceNotFound", desc):
            # query-balloon and balloon answer DeviceNotActive, qom-get DeviceNotFound.
            return ControlError(Fault.NO_BALLOON, desc)
        case Refusal(_, desc):
            return ControlError(Fault.REFUSED, desc)
    return ControlError(Fault.NONSENSE, "an answer of another form")


def _number(answer: object, name: str, most: int) -> int:
    """A member that is a whole number from 0 to ``most``."""
    value = _member(answer, name)
    if type(value) is not int or not 0 <= value <= most:
        figure = isinstance(value, int | float) and abs(value) <= UNKNOWN
        found = value if figure else type(value).__name__
        raise ControlError(Fault.NONSENSE, f"{name}: {found}")
    return value


def _member(answer: object, name: str) -> object:
    if not isinstance(answer, dict) or name not in answer:
        raise refused(answer)
    return answer[name]


def _rows(answer: object) -> Iterator[object]:
    if not isinstance(answer, list):
        raise refused(answer)
    return iter(answer)


def accepted(answer: object) -> None:
    """Checks the answer to a command that returns nothing: ``balloon``, ``qom-set``."""
    if not isinstance(answer, dict):
        raise refused(answer)


def base_bytes(answer: object) -> int:
    """query-memory-size-summary: the memory that the VM was started with."""
    size = _number(answer, "base-memory", MOST_MEMORY_BYTES)
    if size < MIB:
        raise ControlError(Fault.NONSENSE, f"base-memory: {size}")
    return size


def plugged(answer: object) -> Plugged:
    """query-memory-devices: what was plugged in.

    A machine type that cannot have memory devices refuses the command.
    """
    if isinstance(answer, Refusal):
        return Plugged(0, 0)
    sizes = {True: 0, False: 0}
    for row in _rows(answer):
        kind = _member(row, "type")
        if kind in ("dimm", "virtio-mem", "virtio-pmem", "nvdimm"):
            size = _number(_member(row, "data"), "size", MOST_MEMORY_BYTES)
            sizes[kind == "dimm"] += size
    return Plugged(sizes[True], sizes[False])


def can_plug_dimms(answer: object) -> bool:
    """qom-get /machine memory: whether the machine has slots for DIMMs; True where QEMU, before
    7.1, does not say."""
    if isinstance(answer, Refusal):
        return True
    # A machine with no room for more memory has no member "slots".
    return isinstance(answer, dict) and _member({"slots": 0} | answer, "slots") != 0


def vm_bytes(answer: object) -> int:
    """query-balloon: the VM's size without its balloon."""
    return _number(answer, "actual", MOST_MEMORY_BYTES)


def is_running(answer: object) -> bool:
    """query-status: whether virtual CPUs run; False also in S3 (suspend to RAM)."""
    running = _member(answer, "running")
    if not isinstance(running, bool):
        raise ControlError(Fault.NONSENSE, "running: neither true nor false")
    return running


def guest_stats(answer: object) -> GuestStats:
    """qom-get guest-stats. The figures are the guest's: any that 64 bits can hold are accepted."""
    stats, last_update = _member(answer, "stats"), _number(answer, "last-update", UNKNOWN)
    figures = {}
    for name, field in _FIELDS.items():
        # QEMU before 9.0 lacks the last six names of ``_FIELDS``.
        if isinstance(stats, dict) and name not in stats:
            continue
        figure = _number(stats, name, UNKNOWN)
        if figure != UNKNOWN:
            figures[field] = figure
    return GuestStats(last_update, figures)


def interval_s(answer: object) -> int:
    """qom-get guest-stats-polling-interval: in seconds; 0: never."""
    if type(answer) is not int or not 0 <= answer <= UNKNOWN:
        raise refused(answer)
    return answer


def disk_read_bytes(answer: object) -> int | None:
    """query-blockstats: how many bytes the guest has read from all of its disks, at most the
    largest number of 64 bits; None: it has no disks."""
    # A row without "qdev" belongs to no device of the guest.
    read = [
        _number(_member(row, "stats"), "rd_bytes", UNKNOWN)
        for row in _rows(answer)
        if isinstance(row, dict) and "qdev" in row
    ]
    return min(sum(read), UNKNOWN) if read else None


def devices(answer: object) -> list[tuple[str, str]]:
    """qom-list: name and type of the balloons, and of devices that pin memory."""
    found = []
    for row in _rows(answer):
        name, kind = _member(row, "name"), _member(row, "type")
        is_meant = isinstance(kind, str) and kind.startswith((BALLOON, *PINNING))
        if isinstance(name, str) and isinstance(kind, str) and is_meant:
            found.append((name, kind))
    return found[:MAX_DEVICES]


def memory_backends(answer: object) -> list[str]:
    """query-memdev: the names of the objects that are, or could be, the VM's memory."""
    names = (row.get("id") for row in _rows(answer) if isinstance(row, dict))
    return [name for name in names if isinstance(name, str)][:MAX_BACKENDS]


def text(answer: object) -> str:
    """qom-get: a text that is no longer than a path may be; "": anything else."""
    return answer if isinstance(answer, str) and len(answer) < MAX_PATH else ""


def is_true(answer: object) -> bool:
    """qom-get: whether a property is true; False also where there is no such property."""
    return answer is True


def is_done(answer: object) -> bool:
    """Whether a command was not refused."""
    return not isinstance(answer, Refusal)


UUID_LENGTH = 36
_MIGRATION_ENDS = ("completed", "failed", "cancelled")


def last_saved(answer: object) -> int | None:
    """query-migrate: the last migration that has ended, in whichever way, having read all of the
    VM's memory; None: there was none, or one is under way.

    The value only serves for comparison: the next migration has a different one. QEMU counts
    snapshots as migrations, whether a job or the human monitor's savevm makes them.
    """
    if isinstance(answer, dict) and "status" not in answer:
        return None
    if _member(answer, "status") not in _MIGRATION_ENDS:
        return None
    try:
        return hash(repr(answer))
    except RecursionError as err:
        raise ControlError(Fault.NONSENSE, "query-migrate: nested too deeply") from err


def ends_migration(data: object) -> bool:
    """Data of the event MIGRATION: whether a migration has ended, in whichever way."""
    return isinstance(data, dict) and data.get("status") in _MIGRATION_ENDS


def uuid(answer: object) -> str:
    """query-uuid: the VM's UUID, all zeros where none was set; "": the answer has no UUID."""
    value = answer.get("UUID") if isinstance(answer, dict) else None
    return value if isinstance(value, str) and len(value) <= UUID_LENGTH else ""


def thread_id(answer: object) -> int:
    """query-cpus-fast: the first virtual CPU's thread id, in QEMU's own PID namespace."""
    for row in _rows(answer):
        return _number(row, "thread-id", 1 << 22)
    raise ControlError(Fault.NONSENSE, "no CPUs")
