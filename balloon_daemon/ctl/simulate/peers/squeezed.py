"""XCP-ng's and XenServer's ``squeezed``. Pure.

Rule
    Each VM has its least memory (dynamic-min) and a share of its range up to its most memory
    (dynamic-max). The share is the same for all VMs: the one at which the host has as much left as
    it should have. Each 10 s squeezed computes whether a target changes; while targets change or
    are not reached, it does so each second. VMs that are to shrink get their targets first, the
    others when those have shrunk. A VM that makes no progress towards its target for 5 s is
    inactive, and the other VMs make up for it. squeezed reads no statistics.

Approximated
    What the host should have left is balloond's margin. squeezed itself leaves 9 MiB, which are
    for Xen's heap only: the host's programs run in domain 0, which has memory of its own.
    dynamic-min is what the operator's settings, or else the maximum of the profile seed, leave a
    VM, and dynamic-max is the VM's size. An inactive VM keeps its target.

Source: xapi-project/xen-api, ``ocaml/squeezed/lib/squeeze.ml`` and the design document of squeezed
(2026, the newest stored).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from balloon_daemon.ctl.simulate.peers.peer import Host, PeerVm
from balloon_daemon.units import PAGE_SIZE, VmId

EACH_S, BALANCING_S = 10.0, 1.0
INACTIVE_AFTER_S = 5.0


@dataclass(slots=True)
class _Progress:
    balloon_bytes: int
    at_s: float
    is_inactive: bool = False


class Squeezed:
    """squeezed's rule."""

    watch_s: ClassVar[float | None] = None

    def __init__(self) -> None:
        self.period_s = EACH_S
        self._progress: dict[VmId, _Progress] = {}

    def decide(self, host: Host, vms: Mapping[VmId, PeerVm], now_s: float) -> Mapping[VmId, int]:
        """Sends the targets at which all VMs have the same share; VMs that are to shrink first."""
        is_balancing = self.period_s == BALANCING_S
        known = self._progress if is_balancing else {}
        self._progress = {
            vm: known.get(vm) or _Progress(it.balloon_bytes, now_s) for vm, it in vms.items()
        }
        for vm, progress in self._progress.items():
            _note(progress, vms[vm], now_s)
        active = {vm: it for vm, it in vms.items() if not self._progress[vm].is_inactive}
        balloons = _balanced(host, active)
        growing = {
            vm: size
            for vm, size in balloons.items()
            if size > active[vm].balloon_bytes + PAGE_SIZE
        }
        told = growing or balloons
        changes = any(size != active[vm].target_bytes for vm, size in told.items())
        is_there = not any(_way(it) for it in active.values())
        goes_on = changes or (is_balancing and not is_there)
        self.period_s = BALANCING_S if goes_on else EACH_S
        return told if goes_on else {}


def _way(vm: PeerVm) -> int:
    """How many bytes its balloon is to grow (negative: shrink); a page or less counts as 0."""
    way = vm.target_bytes - vm.balloon_bytes
    return way if abs(way) > PAGE_SIZE else 0


def _note(progress: _Progress, vm: PeerVm, now_s: float) -> None:
    if (vm.balloon_bytes - progress.balloon_bytes) * _way(vm) > 0:
        progress.at_s, progress.is_inactive = now_s, False
    elif _way(vm) and now_s - progress.at_s > INACTIVE_AFTER_S:
        progress.is_inactive = True
    progress.balloon_bytes = vm.balloon_bytes


def _balanced(host: Host, vms: Mapping[VmId, PeerVm]) -> dict[VmId, int]:
    """The sizes of balloons with which all VMs have the same share of their ranges."""
    ranges = sum(vm.max_bytes for vm in vms.values())
    if not ranges:
        return {}
    balloons = sum(vm.balloon_bytes for vm in vms.values())
    missing = host.margin_bytes - (host.available_bytes - balloons)
    share = min(max(missing / ranges, 0.0), 1.0)
    # What a guest keeps is rounded down, so that the host is not a few pages short.
    return {
        vm: it.max_bytes - int((1 - share) * it.max_bytes) // PAGE_SIZE * PAGE_SIZE
        for vm, it in vms.items()
    }
