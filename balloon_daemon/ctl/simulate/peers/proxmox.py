"""Proxmox VE's automatic memory allocation. Pure.

Rule
    Each 10 s the host is to use 80 % of its memory. What is missing, or too much, is shared out
    among the VMs: each VM is to have its minimum and an equal share (all ``shares`` are 1000, the
    default) of all that the VMs have above their minimums, plus or minus what is missing. A VM
    that reaches its minimum or its size leaves the rest to the others. In a round a VM changes by
    100 MiB at most, and less than 10 MiB is not shared out at all. A VM is comfortable if its free
    memory is more than a quarter of its minimum: the others grow first, comfortable ones shrink
    first, and all VMs do if none of those can.

Approximated
    Proxmox leaves a VM alone that has no configured minimum. Here every VM has a minimum: what the
    largest balloon leaves it that the operator's settings allow, or, without such settings, the
    policy's own limit (``max_balloon_bytes``).

Source: Proxmox VE 9, pve-manager, ``PVE/AutoBalloon.pm`` and ``PVE/Service/pvestatd.pm``
(2026-10).
"""

from collections.abc import Mapping
from typing import ClassVar

from balloon_daemon.ctl.simulate.peers.peer import Host, PeerVm
from balloon_daemon.units import MIB, VmId

USED_PERCENT = 80
DEAD_BYTES = 10 * MIB
CHANGE_BYTES = 100 * MIB
COMFORTABLE = 0.25

PASSES = 1000
"""How often the rest is shared out again at most. Each pass settles a VM or moves some memory, but
without a limit two VMs could pass the same memory to and fro for ever."""


class Proxmox:
    """Proxmox's rule."""

    watch_s: ClassVar[float | None] = 2.0
    period_s: ClassVar[float] = 10.0

    def decide(self, host: Host, vms: Mapping[VmId, PeerVm], now_s: float) -> Mapping[VmId, int]:
        """Shares out, among the VMs, the difference between 80 % of the host and what is used."""
        used_bytes = host.total_bytes - host.available_bytes
        goal = host.total_bytes * USED_PERCENT // 100 - used_bytes
        if abs(goal) <= DEAD_BYTES:
            return {}
        comfortable = {vm: it for vm, it in vms.items() if _is_comfortable(it)}
        pressed = {vm: it for vm, it in vms.items() if vm not in comfortable}
        sizes: dict[VmId, int] = {}
        rest = _share_out(pressed if goal > 0 else comfortable, goal, sizes)
        if (rest >= goal) if goal > 0 else (rest <= goal):
            _share_out(vms, rest, sizes)
        changed = {vm: size for vm, size in sizes.items() if size != vms[vm].size_bytes}
        return {vm: vms[vm].vm_mem_bytes - size for vm, size in changed.items()}


def _is_comfortable(vm: PeerVm) -> bool:
    free_bytes = (vm.figures.free_bytes or 0) if vm.figures is not None else 0
    return free_bytes > vm.least_bytes * COMFORTABLE and vm.size_bytes >= vm.least_bytes


def _share_out(vms: Mapping[VmId, PeerVm], goal: int, sizes: dict[VmId, int]) -> int:
    """Sets the new sizes of these VMs; returns what is left of the goal."""
    rest, left = goal, dict(vms)
    for _ in range(PASSES):
        if not left or rest == 0:
            break
        above = sum(sizes.get(vm, it.size_bytes) - it.least_bytes for vm, it in left.items())
        share = int((above + rest) / len(left))
        moved = 0
        has_moved = False
        for vm, it in list(left.items()):
            now = it.size_bytes
            wanted = min(max(it.least_bytes + share, it.least_bytes), it.vm_mem_bytes)
            if wanted == now or (wanted > now and goal < 0):
                del left[vm]
                continue
            size = min(max(wanted, now - CHANGE_BYTES), now + CHANGE_BYTES)
            change = size - sizes.get(vm, now)
            sizes[vm] = size
            moved += change
            has_moved |= change != 0
        if not has_moved:
            break
        rest -= moved
    return rest
