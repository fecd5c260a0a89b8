"""What /proc/meminfo says of this host's memory: all of it, what is available, what never can be.

MemTotal is the wrong whole to take a share of where much of it can never be in MemAvailable. Two
kinds never can be, whatever ends or is reclaimed, and the kernel says how much they are:

- Persistent pools of huge pages, of all sizes. Their pages are free for hugetlbfs alone. Surplus
  pages are not part of this: they were ordinary memory and become so again when they are freed.
- Pages with a hardware error (HardwareCorrupted).

All else may be available again, and so counts: what processes, the kernel (slabs, page tables,
Percpu), GPUs' page pools and ZFS's ARC hold while they hold it; CMA areas, which lend their pages
to movable data such as guest memory; a balloon of this host's own, where it is itself a guest (its
driver takes the pages out of MemTotal as a rule). What was set aside before the kernel counted
(crashkernel) is not in MemTotal, and unaccepted memory of a confidential guest is in MemAvailable.
"""

import os
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from balloon_daemon.linux.mountinfo import MOUNTINFO, read_mounts
from balloon_daemon.units import KIB

MEMINFO = Path("/proc/meminfo")
HUGEPAGES = Path("/sys/kernel/mm/hugepages")

# At most 15 digits: a PiB in KiB has 13.
_FIELD = re.compile(rb"^([A-Za-z_()]+): +([0-9]{1,15})(?: kB)?$", re.MULTILINE)
# What the kernel makes MemAvailable of, but for the watermarks that it keeps back
# (mm/show_mem.c, si_mem_available). Every kernel that balloond runs on says MemAvailable; a file
# in its place may not, or may say 0 for ever.
_ESTIMATE = (b"MemFree", b"Active(file)", b"Inactive(file)", b"SReclaimable")
_SIZE = re.compile(r"hugepages-([0-9]+)kB")


class HostMemory(NamedTuple):
    """One reading of a host's memory, in bytes.

    Attributes:
        total_bytes: All that the kernel manages (MemTotal).
        available_bytes: What is available without swapping (MemAvailable).
        pool_bytes: What of the total is in persistent pools of huge pages.
        poisoned_bytes: What of the total has hardware errors.
        is_estimated: Whether an estimate stands in for MemAvailable.
    """

    total_bytes: int
    available_bytes: int
    pool_bytes: int = 0
    poisoned_bytes: int = 0
    is_estimated: bool = False

    @property
    def usable_bytes(self) -> int:
        """What could be available at most, were nothing in use."""
        return self.total_bytes - self.pool_bytes - self.poisoned_bytes


def host_memory(
    path: Path = MEMINFO, hugepages: Path = HUGEPAGES, mounts: Path = MOUNTINFO
) -> HostMemory:
    """Reads this host's memory.

    Args:
        path: The kernel's /proc/meminfo, or a file in its place.
        hugepages: A directory for each size of huge pages, asked for what ``path`` leaves out.
        mounts: Says whether ``path`` is a container's own.

    Raises:
        OSError: the file cannot be read; the kernel's reason.
        ValueError: it lacks MemTotal, or MemAvailable and what an estimate of it takes.
    """
    figures = dict(_FIELD.findall(path.read_bytes()))
    total = _kib(figures, b"MemTotal") * KIB
    if not total:
        raise ValueError(f"{path} has no MemTotal")
    available_bytes = _kib(figures, b"MemAvailable") * KIB
    is_estimated = not available_bytes
    if is_estimated:
        if b"MemFree" not in figures:
            raise ValueError(f"{path} has neither MemAvailable nor MemFree")
        available_bytes = sum(_kib(figures, name) for name in _ESTIMATE) * KIB
    available_bytes = min(available_bytes, total)
    pool, poisoned = _pool_bytes(figures, hugepages), _kib(figures, b"HardwareCorrupted") * KIB
    # No part of what can be available: else these lines are another host's than MemTotal, as in a
    # container whose meminfo shows its own limit as MemTotal and the host's pools unchanged.
    if pool and (pool + poisoned + available_bytes > total or _is_containers(path, mounts)):
        pool = 0
    if poisoned + available_bytes > total:
        poisoned = 0
    return HostMemory(total, available_bytes, pool, poisoned, is_estimated)


def _kib(figures: dict[bytes, bytes], name: bytes) -> int:
    return int(figures.get(name, 0))


def _pool_bytes(figures: dict[bytes, bytes], hugepages: Path) -> int:
    """What is in persistent pools, surplus pages left out.

    The named lines speak of the default size alone; Hugetlb, of all sizes, came with Linux 4.16.
    """
    size_kib, pages = _kib(figures, b"Hugepagesize"), _kib(figures, b"HugePages_Total")
    persistent_kib = (pages - min(_kib(figures, b"HugePages_Surp"), pages)) * size_kib
    if b"Hugetlb" not in figures:
        if size_kib:  # else the kernel has no huge pages
            others = _others(size_kib, hugepages)
            persistent_kib += sum(kib - surplus_kib for kib, surplus_kib in others)
    elif (others_kib := _kib(figures, b"Hugetlb") - pages * size_kib) > 0:
        surplus_kib = sum(surplus for _, surplus in _others(size_kib, hugepages))
        persistent_kib += others_kib - min(surplus_kib, others_kib)
    return persistent_kib * KIB


def _others(default_kib: int, hugepages: Path) -> list[tuple[int, int]]:
    """Of each size but the default one: KiB in huge pages, and how much of it is surplus."""
    found = []
    try:
        names = os.listdir(hugepages)
    except OSError:
        return []
    for name in names:
        size = _SIZE.fullmatch(name)
        if size is None or int(size[1]) == default_kib:
            continue
        pages, surplus = (
            _number(hugepages / name / file) for file in ("nr_hugepages", "surplus_hugepages")
        )
        found.append((pages * int(size[1]), min(surplus, pages) * int(size[1])))
    return found


def _number(path: Path) -> int:
    """A file's whole number; 0 where there is none: nothing more is known then."""
    try:
        return int(path.read_bytes())
    except (OSError, ValueError):
        return 0


@cache  # A container has its meminfo before anything runs in it.
def _is_containers(path: Path, mounts: Path) -> bool:
    """Whether a FUSE file system such as lxcfs stands in for the kernel's file."""
    try:
        return any(
            mount.point == str(path) and mount.fstype.startswith("fuse")
            for mount in read_mounts(mounts)
        )
    except OSError:
        return False
