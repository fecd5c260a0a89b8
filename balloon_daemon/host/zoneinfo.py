"""Counts the free pages in the kernel's per-CPU lists, which MemFree and MemAvailable leave out.

Freed pages wait in such a list for the next allocation on their CPU. Since Linux 6.7 a list grows
with its CPU's recent allocations, up to an eighth of the host's memory for all lists, and shrinks
by some 8 MiB a second. Measured after 1 GiB was freed on a CPU that had just used as much:
MemAvailable missed three quarters of it at first, and over half 20 s later.
"""

import contextlib
import os
import re
from mmap import PAGESIZE
from pathlib import Path

from balloon_daemon.linux.figures import read_figures

ZONEINFO = Path("/proc/zoneinfo")

# The lines of a zone in the file (mm/vmstat.c, zoneinfo_show_print): the zone's "managed" pages,
# then "count:" once for each CPU's list.
_MANAGED = re.compile(rb"^ +managed +([0-9]+)$", re.MULTILINE)
_COUNT = re.compile(rb"^ +count: +([0-9]+)$", re.MULTILINE)


def keep_zoneinfo() -> None:
    """Opens /proc/zoneinfo at the start, as it is read only while memory is low: a lookup of it
    then could wait for whoever lists /proc, and so holds the lock of that directory."""
    with contextlib.suppress(OSError):
        read_figures(os.fspath(ZONEINFO))


def per_cpu_free_bytes(total_bytes: int, path: Path = ZONEINFO) -> int:
    """How much memory is free in the per-CPU lists of all zones, in bytes.

    Args:
        total_bytes: MemTotal in bytes. The result is 0 if the file describes a larger host than
            /proc/meminfo, as in a container that has a meminfo of its own.
        path: The file to read.

    Returns:
        Bytes; 0 also where the file cannot be read or has another format.
    """
    try:
        content = read_figures(os.fspath(path))
    except OSError:
        return 0
    # If the zones have more memory than MemTotal (``total_bytes``), the file describes a larger
    # host than this one: return 0. Allow 1 %, as the two figures differ a little while memory is
    # plugged in or out.
    if sum(map(int, _MANAGED.findall(content))) * PAGESIZE > 1.01 * total_bytes:
        return 0
    return sum(map(int, _COUNT.findall(content))) * PAGESIZE
