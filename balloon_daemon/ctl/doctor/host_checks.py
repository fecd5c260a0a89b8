"""Checks on the host: what MemAvailable does not tell, and whether the margin can work. Pure."""

from collections.abc import Iterator, Sequence
from typing import Any

from balloon_daemon.ctl.doctor.finding import Check, Finding, HostFacts
from balloon_daemon.errors import printable
from balloon_daemon.units import MIB, format_size

LARGE_SHARE, SMALL_SHARE = 2, 100
"""A margin of half of the memory that the host can have available, or more, is too large: memory
is low nearly always. A margin of less than a hundredth is too small: a host may allocate as much
within the second between two readings. The default is 5.2 %."""


def host_findings(facts: HostFacts) -> Iterator[Finding]:
    """What is wrong with the host, whether or not balloond runs."""
    yield from _misled(facts)
    for rival in facts.rivals:
        yield Finding(
            Check.RIVAL,
            f"{printable(rival)} is on this host, and sets balloons too",
            f"let one of the two set a VM's balloon: {_leave(rival)}",
            figures={"rival": rival},
        )


def _misled(facts: HostFacts) -> Iterator[Finding]:
    """Findings where MemAvailable is too small or too large: memory that it leaves out, and memory
    that it counts though it is not available."""
    much, arc, pool = facts.much_bytes, facts.arc, facts.graphics_pool_bytes
    available = format_size(facts.available_bytes)
    if arc is not None and arc.size_bytes - arc.min_bytes >= much:
        size, spare = format_size(arc.size_bytes), format_size(arc.size_bytes - arc.min_bytes)
        yield Finding(
            Check.ZFS_ARC,
            f"ZFS's cache (ARC) has {size}, of which it would give {spare} back, and MemAvailable "
            f"({available}) counts none of that: guests are asked for memory first",
            "limit it: write bytes into /sys/module/zfs/parameters/zfs_arc_max, and for the next "
            "boot zfs_arc_max into /etc/modprobe.d/zfs.conf",
            figures={"arc_bytes": arc.size_bytes, "arc_min_bytes": arc.min_bytes},
        )
    if facts.idle_pool_bytes >= much:
        idle = format_size(facts.idle_pool_bytes)
        yield Finding(
            Check.HUGE_PAGE_POOL,
            f"{idle} lie idle in pools of huge pages, which serve hugetlbfs alone; MemAvailable "
            f"({available}) counts none of that",
            "make the pools smaller (sysctl vm.nr_hugepages, or nr_hugepages in "
            "/sys/kernel/mm/hugepages), or let VMs use them",
            figures={"idle_pool_bytes": facts.idle_pool_bytes},
        )
    if pool is not None and pool >= much:
        yield Finding(
            Check.GRAPHICS_POOL,
            f"graphics drivers keep {format_size(pool)} of free pages, and MemAvailable "
            f"({available}) counts none of that",
            "limit that pool: write pages into /sys/module/ttm/parameters/page_pool_size, or boot "
            "with ttm.page_pool_size=PAGES",
            figures={"graphics_pool_bytes": pool},
        )
    gained = facts.zram.stored_bytes - facts.zram.used_bytes
    if gained >= much:
        stored, used = format_size(facts.zram.stored_bytes), format_size(facts.zram.used_bytes)
        yield Finding(
            Check.ZRAM,
            f"{stored} are swapped out to zram, where they occupy {used}: MemAvailable "
            f"({available}) has {format_size(gained)} that are gone again once those pages are "
            "used",
            "make the margin larger by that (margin in [host], or --margin), or swap to a disk",
            figures={"stored_bytes": facts.zram.stored_bytes, "used_bytes": facts.zram.used_bytes},
        )


def _leave(rival: str) -> str:
    if rival == "pvestatd":
        return (
            "in Proxmox, qm set VMID --shares 0 ends its own ballooning of a VM; or leave the VM "
            "out of balloond's configuration"
        )
    if rival.startswith("/"):
        return "take setmem out of that script, or leave its VMs out of balloond's configuration"
    return "stop it, take its balloon policy out, or leave its VMs out of balloond's configuration"


def margin_findings(
    host: dict[str, Any], vms: Sequence[dict[str, Any]], facts: HostFacts | None
) -> Iterator[Finding]:
    """What is wrong with the memory figures from which a running balloond decides.

    Args:
        host: the host in the answer to ``GET /v1/status``.
        vms: the VMs there.
        facts: this host's memory; None: it is not known.
    """
    if host["switched_off"] is not None:
        yield Finding(
            Check.NO_FIGURES,
            f"low memory is switched off ({printable(host['switched_off'])}): no memory is ever "
            "taken from a VM",
            "write a number of MiB into that file, or give --margin",
        )
    elif host["available_mib"] is None and host["source_error"]:
        yield Finding(
            Check.NO_FIGURES,
            f"what is available is not known ({printable(host['source_error'])}): no memory is "
            "taken from VMs, and none given back",
            "let balloond read those figures; balloond --check says which",
        )
    if host["available_mib"] is None or host["within"] is not None:
        return
    margin, available = host["margin_mib"] * MIB, host["available_mib"] * MIB
    figures: dict[str, int | str | None] = {"margin_bytes": margin, "available_bytes": available}
    if facts is not None:
        usable, said = facts.usable_bytes, f"a margin of {format_size(margin)}"
        if margin >= usable // LARGE_SHARE:
            yield Finding(
                Check.MARGIN,
                f"{said} is half or more of the {format_size(usable)} that this host can have: "
                "memory is low nearly always, and VMs are kept small",
                "give a smaller one (margin in [host], or --margin); without either it is 5.2 %",
                figures=figures | {"usable_bytes": usable},
            )
        # ChromeOS's kernel sets its margin for the host that it runs on: do not call it too small.
        elif margin < usable // SMALL_SHARE and host["source"] == "meminfo":
            yield Finding(
                Check.MARGIN,
                f"{said} is less than a hundredth of the {format_size(usable)} that this host can "
                "have: it may be used up between two readings, a second apart",
                "give a larger one (margin in [host], or --margin); without either it is 5.2 %",
                figures=figures | {"usable_bytes": usable},
            )
    left = sum(max(0, (vm["max_balloon_bytes"] or 0) - vm["balloon_bytes"]) for vm in vms)
    if vms and available + left < margin:
        yield Finding(
            Check.MARGIN,
            f"{format_size(available)} are available, and all balloons can take "
            f"{format_size(left)} more at most: that does not reach the margin of "
            f"{format_size(margin)}",
            "run less on this host, lower the VMs' floors, or give a smaller margin",
            figures=figures | {"left_bytes": left},
        )
