"""Checks on VMs, as a running balloond knows them. Pure."""

from collections.abc import Iterator, Sequence
from shlex import quote
from typing import Any

from balloon_daemon.ctl.doctor.finding import LEAST_BYTES, Check, Finding
from balloon_daemon.errors import printable
from balloon_daemon.sizing.proof import OWN_BYTES, OWN_SHARE
from balloon_daemon.units import format_size

Vm = dict[str, Any]
Event = dict[str, Any]

_NEVER_FREED = (
    "share its memory (QEMU: share=on; libvirt: <access mode='shared'/>), and take mem-lock=on "
    "(<locked/>), huge pages and assigned devices away"
)
_RETURNED = {
    "never-freed": _NEVER_FREED,
    "refilled": "balloonctl release VM gives the balloon back; balloond takes it again in steps",
}
"""The remedy for memory that does not come back, by the cause in the event ``balloon-missing``."""

_STATISTICS = {
    "firecracker": "set stats_polling_interval_s before the VM boots: it cannot be set later",
    "cloud_hypervisor": "use a release after 53.0, the first that has them",
}
_NO_STATISTICS = "update the guest's balloon driver, and in Windows run its balloon service"

_WAITING = frozenset({"not-there", "no-vm", "gone", "own-device"})
"""Faults of VMs that do not run, or that are driven in another way: nothing is wrong."""

_REMEDIES = {
    "hugetlb": "start it on ordinary memory (no <hugepages/>, no mem-path on hugetlbfs), or leave "
    "it out of the configuration: what it has is not to be had",
    "pinned": "detach the host device, or leave the VM out of the configuration: what it has is "
    "not to be had",
    "no-balloon": "give it one (QEMU: -device virtio-balloon-pci; libvirt: <memballoon "
    "model='virtio'/>), and start it again",
    "held": "give balloond a monitor of its own, or drive the VM by way of that program "
    "(--discover libvirt)",
}
_ELSE = "balloonctl events has what led there; docs/attach.md has a recipe for each VMM"


def vm_findings(vm: Vm, events: Sequence[Event], swapped_bytes: int | None) -> Iterator[Finding]:
    """What is wrong with a VM that is driven.

    Args:
        vm: the VM in the answer to ``GET /v1/status``.
        events: the last events about it, the newest last.
        swapped_bytes: how much memory of its VMM is in the host's swap; None: unknown.
    """
    yield from _swapped(vm, swapped_bytes)
    yield from _returned(vm, events)
    if vm["state"] == "no-driver":
        yield Finding(
            Check.NO_DRIVER,
            "no balloon driver listens in its guest, so nothing can be taken from it",
            "where it does not just boot: load virtio_balloon in the guest (modprobe "
            "virtio_balloon; in Windows install it from virtio-win)",
            vm["name"],
            {"memory_bytes": vm["memory_bytes"]},
        )
    yield from _statistics(vm)
    yield from _contested(vm, events)
    if vm["trouble"] is not None:
        yield Finding(
            Check.NOT_MOVED,
            f"its balloon cannot be moved: {printable(vm['trouble'])}",
            f"balloonctl explain {quote(printable(vm['name']))} has what led there",
            vm["name"],
            {"trouble": vm["trouble"]},
        )


def _swapped(vm: Vm, swapped_bytes: int | None) -> Iterator[Finding]:
    free = vm.get("guest_free_bytes")  # An older balloond's status lacks it.
    if swapped_bytes is None or free is None or min(swapped_bytes, free) < LEAST_BYTES:
        return
    yield Finding(
        Check.SWAPPED,
        f"{format_size(swapped_bytes)} of its VMM are in the host's swap, while nothing in the "
        f"guest uses {format_size(free)}: the host has written pages that the guest would have "
        "given",
        "make the margin larger (margin in [host], or --margin), so that balloons come before "
        "swap, and vm.swappiness smaller; balloonctl set VM SIZE empties those pages now",
        vm["name"],
        {"swapped_bytes": swapped_bytes, "guest_free_bytes": free, "vmm_pid": vm.get("vmm_pid")},
    )


def _returned(vm: Vm, events: Sequence[Event]) -> Iterator[Finding]:
    if any(event["event"] == "memory-not-shared" for event in events):
        if vm["memory_bytes"] is None:
            yield Finding(
                Check.NOTHING_RETURNED,
                "its VMM has sent no memory table: its memory is not shared, and a balloon would "
                "free nothing",
                "start it with shared memory (QEMU: share=on; libvirt: <access mode='shared'/>)",
                vm["name"],
            )
        return
    balloon, protection = vm["balloon_bytes"], vm["protection"]
    if protection is not None:
        missing = protection["missing_bytes"]
    else:
        # A VM of the profile seed has no guard that finds missing memory. So report it only if the
        # host has got nothing of the balloon, and the balloon is larger than the memory that a VMM
        # may occupy for itself.
        own = OWN_BYTES + (vm["memory_bytes"] or 0) // OWN_SHARE
        missing = balloon if vm["returned_bytes"] == 0 and balloon > own else 0
    if missing:
        causes = [event["cause"] for event in events if event["event"] == "balloon-missing"]
        yield Finding(
            Check.NOTHING_RETURNED,
            f"its guest gave {format_size(balloon)}, and the host has not got "
            f"{format_size(missing)} more than its VMM needs for itself",
            _RETURNED.get(causes[-1] if causes else "", _NEVER_FREED),
            vm["name"],
            {"balloon_bytes": balloon, "missing_bytes": missing},
        )


def _statistics(vm: Vm) -> Iterator[Finding]:
    objection = None if vm["protection"] is None else vm["protection"]["objection"]
    if vm["state"] != "running" or vm["memory_bytes"] is None:
        return
    if vm["guest_available_bytes"] is None:
        what = "its guest has sent no statistics, so nobody sees when it needs its memory"
    elif objection == "no-fresh-stats":
        what = "its guest's statistics have stopped coming, and it is asked for no more"
    else:
        return
    yield Finding(
        Check.NO_STATISTICS,
        what,
        _STATISTICS.get(vm["kind"], _NO_STATISTICS) + "; or set a floor for it",
        vm["name"],
    )


def _contested(vm: Vm, events: Sequence[Event]) -> Iterator[Finding]:
    protection = vm["protection"]
    if protection is None or protection["objection"] != "contested":
        return
    found = [event for event in events if event["event"] == "balloon-contested"]
    sizes = ""
    figures: dict[str, int | str | None] = {"balloon_bytes": vm["balloon_bytes"]}
    if found:
        wanted, size = found[-1]["target_bytes"], found[-1]["balloon_bytes"]
        sizes = f" ({format_size(size)}, where balloond wanted {format_size(wanted)})"
        figures = {"balloon_bytes": size, "target_bytes": wanted}
    yield Finding(
        Check.CONTESTED,
        f"somebody else sets its balloon{sizes}",
        "find who does and stop it, or leave the VM out of balloond's configuration: Proxmox "
        "(pvestatd), MoM, hook scripts and timers with virsh setmem",
        vm["name"],
        figures,
    )


def undriven_findings(undriven: Sequence[dict[str, str]]) -> Iterator[Finding]:
    """What is wrong with VMs that balloond has found or was told of, but cannot drive."""
    for vm in undriven:
        if vm["fault"] not in _WAITING:
            yield Finding(
                Check.NOT_DRIVEN,
                f"it is not driven: {printable(vm['why'])}",
                _REMEDIES.get(vm["fault"], _ELSE),
                vm["name"],
                {"fault": vm["fault"]},
            )
