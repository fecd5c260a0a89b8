"""ChromeOS's VM memory management service (VMMMS), which followed "balance available". Pure.

Rule
    A host or guest that runs out of memory makes a request: the host's inflates the balloons,
    evenly by 128 MiB in all; a guest's deflates its own balloon by 128 MiB. Each request has a
    priority, and leaves a block, which stops opposite requests of the block's priority and lower
    ones, for 100 s if that priority is low, else for 10 s. The block's priority is not the
    request's own, but just above that of the opposite blocks. An inflation starts from the target,
    a deflation from the balloon's size. An inflating balloon is checked each 5 s: if it gains less
    than 15 MiB a second after more than 4 s, it is stalled: it is deflated by 128 MiB, and no
    request may inflate it for 10 s.

Approximated
    In ChromeOS a request that is blocked has a process killed instead, and most requests are for a
    process's size with the process's priority. A trace has no processes: so each request here is
    as if no process could be killed. How often requests come then is not published; here, each
    second. The host asks while memory is low; a guest asks while its statistics show need, by
    balloond's own signs (``need``), in place of its pressure (PSI). Left out are the requests by
    the age of pages (MGLRU) and the proactive inflation (200 MiB a second) before a VM is swapped
    out: neither is about the host's shortage. VMMMS has no VMs' priorities: they are ignored.

Source: ChromiumOS, platform2, ``vm_tools/concierge/mm/``: ``balloon``, ``balloon_blocker``,
``balloon_broker`` and ``resize_priority.h`` (2023 to 2024).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar

from balloon_daemon.ctl.simulate.peers.peer import Host, PeerVm
from balloon_daemon.sizing.need import NeedRule
from balloon_daemon.units import MIB, VmId

REQUEST_BYTES = 128 * MIB
STALL, HOST, GUEST, CACHED_TAB, LOWEST = 1, 2, 3, 8, 11
"""Priorities; the lower the number, the higher the priority. From CACHED_TAB on they are low."""
BLOCK_S, LOW_BLOCK_S = 10.0, 100.0
CHECK_S, STALL_AFTER_S = 5.0, 4.0
STALL_BYTES_S = 15 * MIB
REACHED_BYTES = MIB


class Way(Enum):
    """Which way a balloon goes."""

    INFLATE = "inflate"
    DEFLATE = "deflate"


class Blocks:
    """Which requests are blocked for one VM."""

    def __init__(self) -> None:
        self._until_s: dict[Way, dict[int, float]] = {way: {} for way in Way}

    def lowest_allowed(self, way: Way, now_s: float) -> int:
        """The lowest priority at which a request for this way is not blocked."""
        opposite = Way.DEFLATE if way is Way.INFLATE else Way.INFLATE
        blocking = [p for p, until_s in self._until_s[opposite].items() if now_s <= until_s]
        return min(blocking, default=LOWEST + 1) - 1

    def ask(self, way: Way, priority: int, now_s: float) -> bool:
        """Whether a request is allowed. Also notes the request, which blocks later ones."""
        lowest = self.lowest_allowed(way, now_s)
        blocked = lowest if STALL < priority < lowest else priority
        higher_gone = {p: at_s for p, at_s in self._until_s[way].items() if p >= blocked}
        for_s = LOW_BLOCK_S if blocked >= CACHED_TAB else BLOCK_S
        self._until_s[way] = higher_gone | {blocked: now_s + for_s}
        return priority <= lowest


@dataclass(slots=True)
class _Balloon:
    """One VM's balloon: its target, and when and from what size it began to move towards it."""

    target_bytes: int
    from_bytes: int
    since_s: float
    check_at_s: float | None = None
    blocks: Blocks = field(default_factory=Blocks)
    need: NeedRule = field(default_factory=NeedRule)

    def resize(self, delta_bytes: int, vm: PeerVm, now_s: float) -> None:
        if vm.balloon_bytes > self.target_bytes - REACHED_BYTES:
            self.from_bytes, self.since_s = self.target_bytes, now_s
        start = max(vm.balloon_bytes, self.target_bytes) if delta_bytes > 0 else vm.balloon_bytes
        self.target_bytes = min(max(0, start + delta_bytes), vm.max_bytes)
        if self.target_bytes > vm.balloon_bytes and self.check_at_s is None:
            self.check_at_s = now_s + CHECK_S

    def is_stalled(self, vm: PeerVm, now_s: float) -> bool:
        """Whether the balloon is stalled; False where the next check (``CHECK_S``) is not due."""
        if self.check_at_s is None or now_s < self.check_at_s:
            return False
        self.check_at_s = None
        if vm.balloon_bytes > self.target_bytes - REACHED_BYTES:
            return False
        seconds = now_s - self.since_s
        if seconds > STALL_AFTER_S:
            gained = vm.balloon_bytes - self.from_bytes
            if gained < STALL_BYTES_S * seconds:
                return True
        self.from_bytes, self.since_s = vm.balloon_bytes, now_s
        self.check_at_s = now_s + CHECK_S
        return False


class Vmmms:
    """VMMMS's rule."""

    watch_s: ClassVar[float | None] = 1.0
    period_s: ClassVar[float] = 1.0

    def __init__(self) -> None:
        self._balloons: dict[VmId, _Balloon] = {}

    def decide(self, host: Host, vms: Mapping[VmId, PeerVm], now_s: float) -> Mapping[VmId, int]:
        """Makes the requests that the host and the guests have in this second, and carries out
        those that are not blocked. Deflates balloons that are stalled."""
        self._balloons = {
            vm: self._balloons.get(vm) or _Balloon(it.target_bytes, it.balloon_bytes, now_s)
            for vm, it in vms.items()
        }
        is_low = host.available_bytes < host.margin_bytes
        told = {}
        for vm_id, balloon in self._balloons.items():
            vm = vms[vm_id]
            # ``Peer`` rounds targets to whole pages, and keeps them within the settings.
            balloon.target_bytes = vm.target_bytes
            if balloon.is_stalled(vm, now_s):
                balloon.blocks.ask(Way.DEFLATE, STALL, now_s)
                balloon.resize(-REQUEST_BYTES, vm, now_s)
            if is_low and balloon.blocks.ask(Way.INFLATE, HOST, now_s):
                balloon.resize(REQUEST_BYTES // len(vms), vm, now_s)
            if _needs(balloon, vm, now_s) and balloon.blocks.ask(Way.DEFLATE, GUEST, now_s):
                balloon.resize(-REQUEST_BYTES, vm, now_s)
            if balloon.target_bytes != vm.target_bytes:
                told[vm_id] = balloon.target_bytes
        return told


def _needs(balloon: _Balloon, vm: PeerVm, now_s: float) -> bool:
    if vm.figures is None:
        return False
    balloon.need.take(vm.figures, squeezed=vm.balloon_bytes > 0 or vm.target_bytes > 0)
    return vm.balloon_bytes > 0 and bool(balloon.need.signs(now_s, vm.vm_mem_bytes, stuck=False))
