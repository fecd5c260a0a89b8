"""Free pages that no figure of free memory counts: those in the kernel's per-CPU lists.

Pages that were freed wait there for the next allocation on their CPU. Since Linux 6.7 such a list
grows with what its CPU allocated lately, up to an eighth of the host's memory for all of them, and
shrinks by some 8 MiB a second; neither MemFree nor MemAvailable knows of it. Of 1 GiB freed on a
CPU that had just used as much, MemAvailable missed three quarters at first, over half 20 s later.
"""

import re
from mmap import PAGESIZE
from pathlib import Path

ZONEINFO = Path("/proc/zoneinfo")

# mm/vmstat.c, zoneinfo_show_print: a zone's pages, then "count:" once for each CPU's list.
_MANAGED = re.compile(rb"^ +managed +([0-9]+)$", re.MULTILINE)
_COUNT = re.compile(rb"^ +count: +([0-9]+)$", re.MULTILINE)


def per_cpu_free_bytes(total_bytes: int, path: Path = ZONEINFO) -> int:
    """How much memory is free in the per-CPU lists of all zones, in bytes.

    Args:
        total_bytes: MemTotal in bytes. A file that speaks of a larger host than /proc/meminfo
            does, as in a container that has a meminfo of its own, gives 0.
        path: The file to read.

    Returns:
        0 also where the file cannot be had or is not what it was: nothing more is known then.
    """
    try:
        content = path.read_bytes()
    except OSError:
        return 0
    # Not exactly the same while memory is being plugged in or out.
    if sum(map(int, _MANAGED.findall(content))) * PAGESIZE > 1.01 * total_bytes:
        return 0
    return sum(map(int, _COUNT.findall(content))) * PAGESIZE
