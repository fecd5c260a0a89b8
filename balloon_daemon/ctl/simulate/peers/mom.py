"""oVirt's Memory Overcommitment Manager (MoM). Pure.

Rule
    Host and guests are sampled each 5 s. Each 10 s, in a round, the rule decides from the means of
    the last ten samples. While less than 20 % of the host's memory is free, each guest shrinks by
    5 % of its size a round, but keeps what it uses and, beyond that, the same share of its size
    that the host has free. If the host has 5 % or less free, the guest keeps that share less 5 %,
    a negative number: it has to swap. While the host has 20 % or more free, each guest grows by
    5 % a round, or at once to what it uses and 20 % of its size. Changes of up to 0.25 % of a
    guest's size are not made.

Approximated
    A guest uses what is not free, caches too, as MoM has it. Its guaranteed minimum is what the
    operator's settings, or else the seed's maximum, leave it. A guest that sends no statistics is
    left alone.

Source: oVirt/mom, ``doc/balloon.rules`` (commit e0f3d3b, the newest stored) for the rule,
``momd``'s defaults (5 s, 10 s, 10 samples) for its times.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from balloon_daemon.ctl.simulate.peers.peer import Host, PeerVm
from balloon_daemon.units import VmId

SAMPLES = 10
PRESSURE, CRITICAL = 0.20, 0.05
GUEST_FREE = 0.20
MOST_CHANGE, LEAST_CHANGE = 0.05, 0.0025


class _Sample(NamedTuple):
    size_bytes: int
    used_bytes: int


def _samples() -> deque[_Sample]:
    return deque(maxlen=SAMPLES)


@dataclass(slots=True)
class Mom:
    """MoM's rule."""

    watch_s: ClassVar[float | None] = 5.0
    period_s: ClassVar[float] = 5.0

    _host: deque[float] = field(default_factory=lambda: deque(maxlen=SAMPLES))
    _guests: dict[VmId, deque[_Sample]] = field(default_factory=dict)
    _decides: bool = False

    def decide(self, host: Host, vms: Mapping[VmId, PeerVm], now_s: float) -> Mapping[VmId, int]:
        """Samples host and guests at each call, and decides at every second call."""
        self._host.append(host.available_bytes / host.total_bytes)
        self._guests = {vm: self._guests.get(vm) or _samples() for vm in vms}
        for vm_id, vm in vms.items():
            if vm.figures is not None and vm.figures.free_bytes is not None:
                size_bytes = max(0, vm.vm_mem_bytes - vm.then_bytes)
                sample = _Sample(size_bytes, size_bytes - vm.figures.free_bytes)
                self._guests[vm_id].append(sample)
        self._decides = not self._decides
        if self._decides:
            return {}
        free = sum(self._host) / len(self._host)
        balloons = {}
        for vm_id, samples in self._guests.items():
            if samples:
                used = sum(sample.used_bytes for sample in samples) / len(samples)
                size = _size(vms[vm_id], used, free)
                if size is not None:
                    balloons[vm_id] = vms[vm_id].vm_mem_bytes - int(size)
        return balloons


def _size(vm: PeerVm, used: float, free: float) -> float | None:
    """A guest's new size in bytes; None: no change.

    Args:
        vm: the VM.
        used: what it uses, in bytes.
        free: the share of the host's memory that is free.
    """
    now = vm.size_bytes
    if free < PRESSURE:
        kept = free - CRITICAL if free <= CRITICAL else GUEST_FREE * free / PRESSURE
        size = max(now * (1 - MOST_CHANGE), vm.least_bytes, used + kept * now)
        if size > now:
            return None
    elif now < vm.vm_mem_bytes:
        size = max(now * (1 + MOST_CHANGE), vm.least_bytes, used + GUEST_FREE * now)
        size = min(size, vm.vm_mem_bytes)
    else:
        return None
    return size if abs(size - now) > LEAST_CHANGE * now else None
