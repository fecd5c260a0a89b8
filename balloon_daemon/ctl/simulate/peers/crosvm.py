"""crosvm's "balance available" of 2020, ChromeOS's rule after the seed's. Pure.

Rule
    Each second, for each VM by itself: the balloon changes by half of the difference between what
    the guest and what the host have available above their critical margins. A change leaves the
    guest, or the host, at most 10 MiB less available than its critical margin. A difference of
    less than 2 % of both is ignored, unless either is within 1 MiB of its margin. The guest's
    critical margin is at first 400 MiB, and then the least that it had available twice in a row
    while its balloon was smaller than 95 % of its greatest size so far (which counts as at least
    three quarters of the VM).

Approximated
    The guest's free memory and caches are its available memory, as traces have no size of caches.
    The host's critical margin is balloond's, which is the same file on ChromeOS. The bias for full
    balloons is 0, the default. Without new statistics nothing changes.

Source: crosvm, ``src/linux.rs`` (2020); then ChromeOS, platform2,
``vm_tools/concierge/balloon_policy.cc`` (2021 to 2024). Only the latter halves the difference:
with all of it host and guest would exchange their surplus each second.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from balloon_daemon.ctl.simulate.peers.peer import Host, PeerVm
from balloon_daemon.units import MIB, VmId

FIRST_CRITICAL_BYTES = 400 * MIB
BELOW_BYTES = 10 * MIB
NEAR_BYTES = MIB
FULL_PERCENT = 95
IGNORED_PERCENT = 1
"""A difference of more than this percentage is acted on. Percentages are whole numbers here, so
that is 2 % and more."""


@dataclass(slots=True)
class _Guest:
    greatest_bytes: int
    critical_bytes: int = FIRST_CRITICAL_BYTES
    before_bytes: int = FIRST_CRITICAL_BYTES
    before_percent: int = 0
    at_s: float | None = None


class BalanceAvailable:
    """crosvm's rule."""

    watch_s: ClassVar[float | None] = 1.0
    period_s: ClassVar[float] = 1.0

    def __init__(self) -> None:
        self._guests: dict[VmId, _Guest] = {}

    def decide(self, host: Host, vms: Mapping[VmId, PeerVm], now_s: float) -> Mapping[VmId, int]:
        """Changes the balloon of each guest that has sent new statistics, according to how much
        the guest and how much the host have available (``_delta``)."""
        self._guests = {
            vm: self._guests.get(vm) or _Guest(it.vm_mem_bytes * 3 // 4) for vm, it in vms.items()
        }
        balloons = {}
        for vm_id, vm in vms.items():
            guest, figures = self._guests[vm_id], vm.figures
            if figures is None or figures.available_bytes is None or figures.at_s == guest.at_s:
                continue
            guest.at_s = figures.at_s
            delta = _delta(guest, vm.balloon_bytes, figures.available_bytes, host)
            if delta:
                balloons[vm_id] = max(0, vm.balloon_bytes + delta)
        return balloons


def _delta(guest: _Guest, balloon_bytes: int, available_bytes: int, host: Host) -> int:
    """By how many bytes the balloon is to change."""
    guest.greatest_bytes = max(guest.greatest_bytes, balloon_bytes, 1)
    percent = balloon_bytes * 100 // guest.greatest_bytes
    was_full = max(percent, guest.before_percent) >= FULL_PERCENT
    if max(available_bytes, guest.before_bytes) < guest.critical_bytes and not was_full:
        guest.critical_bytes = guest.before_bytes
    guest.before_bytes, guest.before_percent = available_bytes, percent
    guest_above = available_bytes - guest.critical_bytes
    host_above = host.available_bytes - host.margin_bytes
    delta = (guest_above - host_above) // 2
    is_near = min(guest_above, host_above) < NEAR_BYTES
    if not is_near and abs(delta) * 100 // min(guest_above, host_above) <= IGNORED_PERCENT:
        return 0
    if delta < 0:
        return max(delta, -(host_above + BELOW_BYTES))
    return min(delta, guest_above + BELOW_BYTES)
