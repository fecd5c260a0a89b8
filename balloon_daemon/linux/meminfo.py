"""Reads /proc/meminfo: the host's memory, the part that is available, and the part that never can
be.

A margin as a share of MemTotal would be wrong where much memory can never be in MemAvailable. Two
kinds never can, whatever ends or is reclaimed, and the kernel reports their sizes:

- Persistent pools of huge pages, of all sizes. Their pages are free for hugetlbfs alone. Surplus
  pages are not included: they were ordinary memory and become so again when they are freed.
- Pages with a hardware error (HardwareCorrupted).

All other memory may become available again, and so counts: memory held by processes, the kernel
(slabs, page tables, Percpu), GPUs' page pools and ZFS's ARC; CMA areas, which lend their pages to
movable data such as guest memory; a balloon of this host's own, where it is itself a guest (its
driver usually takes the pages out of MemTotal). Memory reserved at boot (crashkernel) is not in
MemTotal, and unaccepted memory of a confidential guest is in MemAvailable.
"""

import os
import re
from functools import cache
from pathlib import Path

from balloon_daemon.linux.figures import one_read_of, read_figures
from balloon_daemon.linux.mountinfo import MOUNTINFO, read_mounts
from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.units import KIB

MEMINFO = Path("/proc/meminfo")
HUGEPAGES = Path("/sys/kernel/mm/hugepages")

# Longer numbers than 15 digits are not read: a PiB, in KiB, has 13 digits.
_VALUE = re.compile(rb": +([0-9]{1,15})(?: kB)?$", re.MULTILINE)
# The kernel computes MemAvailable from these fields, less its watermarks (mm/show_mem.c,
# si_mem_available). Where MemAvailable is missing or 0, the sum of these fields is used. All
# kernels that balloond supports have MemAvailable; a file mounted over /proc/meminfo may lack it.
_ESTIMATE = (b"MemFree", b"Active(file)", b"Inactive(file)", b"SReclaimable")
_SIZE = re.compile(r"hugepages-([0-9]+)kB")


class HostMemory(NamedTuple):
    """One reading of a host's memory, in bytes.

    Attributes:
        total_bytes: All that the kernel manages (MemTotal).
        available_bytes: The memory available without swapping (MemAvailable).
        pool_bytes: The part of the total in persistent pools of huge pages.
        poisoned_bytes: The part of the total with hardware errors.
        is_estimated: Whether available_bytes is an estimate in place of MemAvailable.
    """

    total_bytes: int
    available_bytes: int
    pool_bytes: int = 0
    poisoned_bytes: int = 0
    is_estimated: bool = False

    @property
    def usable_bytes(self) -> int:
        """The most that could be available if no memory were in use."""
        return self.total_bytes - self.pool_bytes - self.poisoned_bytes


def host_memory(
    path: Path = MEMINFO, hugepages: Path = HUGEPAGES, mounts: Path = MOUNTINFO
) -> HostMemory:
    """Reads this host's memory.

    Args:
        path: The kernel's /proc/meminfo, or a file in its place.
        hugepages: The directory with one directory for each size of huge pages, for figures that
            ``path`` lacks.
        mounts: The list of mounts, which shows whether ``path`` is a container's own.

    Raises:
        OSError: the file cannot be read; the kernel's reason.
        ValueError: the file lacks MemTotal, or both MemAvailable and MemFree.
    """
    # Look up the few fields that count: parsing all fifty would take half of a poll's time.
    meminfo = b"\n" + read_figures(os.fspath(path), content=one_read_of)
    total = _kib(meminfo, b"MemTotal") * KIB
    if not total:
        raise ValueError(f"{path} has no MemTotal")
    available_bytes = _kib(meminfo, b"MemAvailable") * KIB
    is_estimated = not available_bytes
    if is_estimated:
        if _field(meminfo, b"MemFree") is None:
            raise ValueError(f"{path} has neither MemAvailable nor MemFree")
        available_bytes = sum(_kib(meminfo, name) for name in _ESTIMATE) * KIB
    available_bytes = min(available_bytes, total)
    pool, poisoned = _pool_bytes(meminfo, hugepages), _kib(meminfo, b"HardwareCorrupted") * KIB
    # Huge page pools and poisoned pages are never part of the available memory. If all three
    # together exceed MemTotal, the figures are from different hosts, and the pools are not
    # counted: a container's meminfo may show the container's limit as MemTotal beside the host's
    # pools.
    if pool and (pool + poisoned + available_bytes > total or _is_containers(path, mounts)):
        pool = 0
    if poisoned + available_bytes > total:
        poisoned = 0
    return HostMemory(total, available_bytes, pool, poisoned, is_estimated)


def _field(meminfo: bytes, name: bytes) -> int | None:
    """The number in the field's last line, in KiB where it is an amount; None: no such field."""
    line = b"\n" + name
    if (at := meminfo.rfind(line + b":")) < 0:
        return None
    found = _VALUE.match(meminfo, at + len(line))
    return None if found is None else int(found[1])


def _kib(meminfo: bytes, name: bytes) -> int:
    return _field(meminfo, name) or 0


def _pool_bytes(meminfo: bytes, hugepages: Path) -> int:
    """The bytes in persistent pools, without surplus pages.

    The HugePages lines cover the default size only; Hugetlb, for all sizes, came with Linux 4.16.
    """
    size_kib, pages = _kib(meminfo, b"Hugepagesize"), _kib(meminfo, b"HugePages_Total")
    persistent_kib = (pages - min(_kib(meminfo, b"HugePages_Surp"), pages)) * size_kib
    hugetlb_kib = _field(meminfo, b"Hugetlb")
    if hugetlb_kib is None:
        if size_kib:  # 0: the kernel has no huge pages
            others = _others(size_kib, hugepages)
            persistent_kib += sum(kib - surplus_kib for kib, surplus_kib in others)
    elif (others_kib := hugetlb_kib - pages * size_kib) > 0:
        surplus_kib = sum(surplus for _, surplus in _others(size_kib, hugepages))
        persistent_kib += others_kib - min(surplus_kib, others_kib)
    return persistent_kib * KIB


def _others(default_kib: int, hugepages: Path) -> list[tuple[int, int]]:
    """For each size but the default: KiB in huge pages, and how much of it is surplus."""
    found = []
    try:
        names = _sizes(hugepages)
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


# Cached: the sizes of huge pages are fixed at boot. Each listing would end with a close(2) of the
# directory, which takes long where another process has put many locks on it
# (``linux/figures.py``).
@cache
def _sizes(hugepages: Path) -> list[str]:
    return os.listdir(hugepages)


def _number(path: Path) -> int:
    """A file's whole number; 0 where it cannot be read."""
    try:
        return int(read_figures(os.fspath(path)))
    except (OSError, ValueError):
        return 0


# Cached: a container's meminfo is mounted before any process of it starts, so the answer never
# changes.
@cache
def _is_containers(path: Path, mounts: Path) -> bool:
    """Whether a FUSE file system such as lxcfs provides this file in place of the kernel."""
    try:
        return any(
            mount.point == str(path) and mount.fstype.startswith("fuse")
            for mount in read_mounts(mounts)
        )
    except OSError:
        return False
