"""Reads the facts about a host from /proc and /sys, or from copies of them in a directory.

A file that cannot be read counts as absent, except /proc/meminfo: most hosts have no ZFS, and only
root may read debugfs, which has the size of TTM's pool.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from balloon_daemon.ctl.doctor.finding import Arc, HostFacts, Zram
from balloon_daemon.linux.bounded_file import read_bounded
from balloon_daemon.linux.meminfo import host_memory
from balloon_daemon.units import KIB

RIVALS = ("pvestatd", "momd")
"""Programs that set balloons, by the names that the kernel has for them (/proc/PID/comm):
Proxmox's, and the Memory Overcommitment Manager (MoM), also oVirt's."""

_MOST_BYTES = 1 << 20
_PAGE_BYTES = 4 * KIB
_LINE = re.compile(r"^([A-Za-z0-9_()]+):? +(?:4 +)?([0-9]{1,15})(?: kB)?$", re.MULTILINE)
_TTM_TOTAL = re.compile(r"^total(?: node[0-9]+)?\s*:\s*([0-9]{1,15}) of ", re.MULTILINE)
_HUGE_SIZE = re.compile(r"hugepages-([0-9]{1,12})kB")


def read_host(root: Path = Path("/")) -> HostFacts:
    """Reads a host's memory.

    Args:
        root: the directory with ``proc`` and ``sys``.

    Raises:
        OSError: there is no ``proc/meminfo``; the kernel's reason.
        ValueError: that file lacks figures.
    """
    proc, system = root / "proc", root / "sys"
    hugepages = system / "kernel/mm/hugepages"
    memory = host_memory(proc / "meminfo", hugepages, proc / "self/mountinfo")
    arc = _figures(proc / "spl/kstat/zfs/arcstats")
    return HostFacts(
        memory.total_bytes,
        memory.available_bytes,
        memory.usable_bytes,
        _idle_pool_bytes(hugepages),
        _graphics_pool_bytes(proc, system),
        Arc(arc["size"], arc.get("c_min", 0)) if "size" in arc else None,
        _zram(proc, system),
        (*_programs(proc), *_hooks(root)),
    )


def swapped_bytes(pid: int, root: Path = Path("/")) -> int | None:
    """How much of a process's memory is in the host's swap; None: unknown.

    ``VmSwap`` counts private memory alone. Shared memory, such as that of VMs that balloond's own
    vhost-user device serves, is counted only in ``smaps_rollup``, for which the kernel walks all
    page tables of the process: too slow to be read each second, but not for a user who asks once.
    """
    process = root / f"proc/{pid}"
    found = [
        figures[name]
        for name, figures in (
            ("VmSwap", _figures(process / "status", "VmSwap")),
            ("Swap", _figures(process / "smaps_rollup", "Swap")),
        )
        if name in figures
    ]
    return max(found) * KIB if found else None


def _text(path: Path) -> str:
    """A file's text; "" where it cannot be read, or is too large for what it should be."""
    try:
        return read_bounded(str(path), str(path), _MOST_BYTES).content.decode(errors="replace")
    except OSError:
        return ""


def _figures(path: Path, only: str = "") -> dict[str, int]:
    """A file's figures by their names; with ``only``, the figure of that name alone. A line has a
    name, a colon and a number, as in /proc/meminfo, or a name, the type 4 (an unsigned 64-bit
    number) and a number, as in ZFS's arcstats."""
    text = _text(path)
    if only:
        text = "\n".join(line for line in text.splitlines() if line.startswith(f"{only}:"))
    text = text.replace("\t", " ")
    return {name: int(digits) for name, digits in _LINE.findall(text)}


def _number(path: Path) -> int:
    text = _text(path).strip()
    return int(text) if text.isdecimal() and len(text) < 16 else 0


def _idle_pool_bytes(hugepages: Path) -> int:
    """The size of the huge pages that are neither in use nor reserved for a mapping
    (free_hugepages, resv_hugepages in admin-guide/mm/hugetlbpage)."""
    idle = 0
    for pool in _listed(hugepages):
        if size := _HUGE_SIZE.fullmatch(pool.name):
            free, kept = (_number(pool / f"{name}_hugepages") for name in ("free", "resv"))
            idle += max(0, free - kept) * int(size[1]) * KIB
    return idle


def _graphics_pool_bytes(proc: Path, system: Path) -> int | None:
    """The free memory in graphics drivers' pools: GPUReclaim of /proc/meminfo if the kernel has
    it, else the total, in pages, of TTM, those drivers' memory manager (one for each NUMA node).
    None: unknown."""
    figures = _figures(proc / "meminfo", "GPUReclaim")
    if "GPUReclaim" in figures:
        return figures["GPUReclaim"] * KIB
    totals = _TTM_TOTAL.findall(_text(system / "kernel/debug/ttm/page_pool"))
    return sum(map(int, totals)) * _PAGE_BYTES if totals else None


def _zram(proc: Path, system: Path) -> Zram:
    """The zram devices that are swap: orig_data_size and mem_used_total of their mm_stat."""
    stored = used = 0
    for line in _text(proc / "swaps").splitlines()[1:]:
        device = line.split()[0] if line.split() else ""
        if re.fullmatch(r"/dev/zram[0-9]+", device):
            words = _text(system / "block" / Path(device).name / "mm_stat").split()
            if len(words) >= 3 and all(word.isdecimal() for word in words[:3]):
                stored, used = stored + int(words[0]), used + int(words[2])
    return Zram(stored, used)


def _programs(proc: Path) -> Iterable[str]:
    names = {_text(path / "comm").strip() for path in _listed(proc) if path.name.isdecimal()}
    return sorted(names & set(RIVALS))


def _hooks(root: Path) -> Iterable[str]:
    """libvirt's hook scripts for QEMU's domains that set a domain's memory."""
    hooks = root / "etc/libvirt/hooks"
    for path in (hooks / "qemu", *sorted(_listed(hooks / "qemu.d"))):
        if re.search(r"\bsetmem\b|\bsetMemory", _text(path)):
            yield f"/{path.relative_to(root)}"


def _listed(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError:
        return []
