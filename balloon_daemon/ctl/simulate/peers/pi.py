"""The proportional-integral (PI) controller of ``qemus/qemu``, a container that runs one VM. Pure.

Rule
    Each 5 s, for each VM by itself: the error is how far the free share of the host is below 20 %.
    The guest's size falls by (0.5 x error + 0.05 x the sum of error x seconds) of the VM's size,
    the sum within -1 and 1. The guest keeps 33 % of its size; while 10 % of the host are free, it
    also keeps what it uses without caches. When the guest's size reaches a limit, the sum is set
    to the value that gives just that size (anti-windup). A change of less than 128 MiB is not
    made, unless the guest's size reaches a limit by it.

Approximated
    No pressure figures (PSI) of the host are in a trace, so the limit that they set is left out,
    and so is that of a container. What a guest uses is the VM's size less its balloon and less
    what the guest has available. A VM that has never sent statistics is left alone, as that
    container does.

Source: qemus/qemu, ``src/balloon.py`` (commit 04ea326, v5.15 and later, 2026).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from balloon_daemon.ctl.simulate.peers.peer import Host, PeerVm
from balloon_daemon.units import MIB, VmId

FREE, LEAST_FREE = 0.20, 0.10
LEAST_SIZE = 0.33
KP, KI = 0.5, 0.05
PERIOD_S = 5.0
LEAST_CHANGE_BYTES = 128 * MIB


@dataclass(slots=True)
class _Controller:
    integral: float = 0.0
    told_bytes: int | None = None


class ProportionalIntegral:
    """The controller's rule."""

    watch_s: ClassVar[float | None] = PERIOD_S
    period_s: ClassVar[float] = PERIOD_S

    def __init__(self) -> None:
        self._controllers: dict[VmId, _Controller] = {}

    def decide(self, host: Host, vms: Mapping[VmId, PeerVm], now_s: float) -> Mapping[VmId, int]:
        """Controls each VM by itself."""
        self._controllers = {vm: self._controllers.get(vm) or _Controller() for vm in vms}
        free = host.available_bytes / host.total_bytes
        balloons = {}
        for vm_id, controller in self._controllers.items():
            vm = vms[vm_id]
            knows = vm.figures is not None and vm.vm_mem_bytes > 0
            size = _size(controller, vm, free) if knows else None
            if size is not None:
                balloons[vm_id] = vm.vm_mem_bytes - size
        return balloons


def _size(controller: _Controller, vm: PeerVm, free: float) -> int | None:
    """A guest's new size in bytes; None: no change."""
    most = vm.vm_mem_bytes
    least = min(most, max(int(most * LEAST_SIZE), vm.least_bytes))
    if free >= LEAST_FREE and vm.figures is not None and vm.figures.available_bytes is not None:
        used = most - vm.then_bytes - vm.figures.available_bytes
        least = min(most, max(least, used))
    error = FREE - free
    integral = _within_one(controller.integral + error * PERIOD_S)
    wanted = int(vm.size_bytes - (KP * error + KI * integral) * most)
    size = min(max(wanted, least), most)
    if (size == least and error > 0) or (size == most and error < 0):
        integral = _within_one((vm.size_bytes - size) / (KI * most) - KP * error / KI)
    controller.integral = integral
    told = most if controller.told_bytes is None else controller.told_bytes
    if size == told or (abs(size - told) < LEAST_CHANGE_BYTES and size not in (least, most)):
        return None
    controller.told_bytes = size
    return size


def _within_one(number: float) -> float:
    return min(max(number, -1.0), 1.0)
