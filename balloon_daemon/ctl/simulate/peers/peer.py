"""What all peers have in common: VMs, their limits, and rounds in which a rule decides. Pure.

A peer is another project's way to size balloons: a ``Rule`` in a ``Peer``. The rule sees the host
and the VMs of one moment and says how large balloons are to be; the ``Peer`` keeps the VMs'
figures, calls the rule when its next round is due, and limits the rule's sizes to what the
operator's settings allow (``Terms``).

An operator's commands to balloond (a pause, a reserve, a balloon's size) mean nothing to a peer:
it ignores those events.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from balloon_daemon.errors import StateError
from balloon_daemon.sizing.decision import Reading
from balloon_daemon.sizing.host_events import (
    Added,
    Event,
    Halted,
    HostStep,
    Moved,
    Ran,
    Removed,
    Resized,
    Restored,
    Sampled,
    Seen,
    SettingsChanged,
    Target,
    Watch,
    Woke,
)
from balloon_daemon.sizing.need import Figures
from balloon_daemon.sizing.terms import Terms
from balloon_daemon.units import MIB, PAGE_SIZE, VmId


class Host(NamedTuple):
    """A host's memory at one moment, in bytes.

    Attributes:
        total_bytes: all of the host's memory.
        available_bytes: what could be allocated without swapping (MemAvailable).
        margin_bytes: balloond's margin: with less available, memory is low.
    """

    total_bytes: int
    available_bytes: int
    margin_bytes: int


@dataclass(slots=True)
class PeerVm:
    """A VM as peers know it.

    Attributes:
        vm_mem_bytes: its size without a balloon.
        terms: its settings and abilities.
        balloon_bytes: its balloon's size.
        target_bytes: the target that it was sent last.
        figures: its guest's last statistics; None: it has sent none.
        then_bytes: its balloon's size when these statistics came.
        runs: whether a guest runs in it with a driver that listens.
    """

    vm_mem_bytes: int
    terms: Terms
    balloon_bytes: int
    target_bytes: int
    figures: Figures | None = None
    then_bytes: int = 0
    runs: bool = True

    @property
    def max_bytes(self) -> int:
        """The largest balloon that its settings allow."""
        return self.terms.max_bytes(self.vm_mem_bytes)

    @property
    def least_bytes(self) -> int:
        """The memory that its guest keeps at the largest balloon."""
        return self.vm_mem_bytes - self.max_bytes

    @property
    def size_bytes(self) -> int:
        """The memory that its guest has now."""
        return max(0, self.vm_mem_bytes - self.balloon_bytes)


class Rule(Protocol):
    """The rule of one peer, with a state of its own for one run."""

    @property
    def watch_s(self) -> float | None:
        """How often guests send statistics; None: the rule reads none."""
        ...

    @property
    def period_s(self) -> float:
        """The time from this round to the next one."""
        ...

    def decide(self, host: Host, vms: Mapping[VmId, PeerVm], now_s: float) -> Mapping[VmId, int]:
        """Decides at a round.

        Args:
            host: the host's memory.
            vms: the VMs whose guests run, for reading.
            now_s: the clock, in seconds.

        Returns:
            The balloons' new sizes in bytes; ``Peer`` limits each to what its VM allows.
        """
        ...


class Peer:
    """Sizes balloons by another project's rule. Implements ``Policy``, by which a simulation calls
    balloond's own sizing policy and peers alike.

    Args:
        rule: the rule.
        draw: gives a uniform number of [0, 1), the time of the first round as a share of a period.
            It is random because a trace's events have no fixed relation to the rounds.
        host_mib: all memory of the host, in MiB.
    """

    def __init__(self, rule: Rule, draw: Callable[[], float], host_mib: int) -> None:
        self._rule = rule
        self._total_bytes = max(1, host_mib) * MIB
        self._vms: dict[VmId, PeerVm] = {}
        self._phase = draw()
        self._round_at_s: float | None = None
        self._halted = False

    def step(self, event: Event, now_s: float) -> HostStep:
        """Handles one event; only ``Woke`` at a round's time makes decisions.

        Raises:
            StateError: the event is about an unknown VM, or adds a VM twice.
        """
        if self._round_at_s is None:
            self._round_at_s = now_s + self._phase * self._rule.period_s
        targets: list[Target] = []
        watches: tuple[Watch, ...] = ()
        match event:
            case Added() | Restored():
                if event.vm in self._vms:
                    raise StateError(f"{event.vm} has a policy already")
                vm = PeerVm(
                    event.vm_mem_bytes, event.terms, event.balloon_bytes, event.balloon_bytes
                )
                self._vms[event.vm] = vm
                self._keep_within_limits(event.vm, vm, targets)
                if self._rule.watch_s is not None and event.terms.sends_stats:
                    watches = (Watch(event.vm, self._rule.watch_s),)
            case Removed():
                self._vm(event.vm)
                del self._vms[event.vm]
            case Resized(vm_id, vm_mem_bytes):
                vm = self._vm(vm_id)
                vm.vm_mem_bytes = vm_mem_bytes
                self._keep_within_limits(vm_id, vm, targets)
            case SettingsChanged(vm_id, settings):
                vm = self._vm(vm_id)
                vm.terms = replace(vm.terms, settings=settings)
                self._keep_within_limits(vm_id, vm, targets)
            case Moved(vm_id, balloon_bytes):
                self.note_actual(vm_id, balloon_bytes)
            case Sampled(vm_id, figures):
                vm = self._vm(vm_id)
                vm.figures, vm.then_bytes = figures, vm.balloon_bytes
            case Ran(vm_id, runs):
                self._vm(vm_id).runs = runs
            case Woke(seen) if now_s >= self._round_at_s:
                self._round(seen, now_s, targets)
            case Halted():
                self._halted = True
            case _:
                pass
        if self._halted:
            return HostStep((), (), None, listen=False)
        return HostStep(tuple(targets), (), self._round_at_s, listen=False, watches=watches)

    def note_actual(self, vm: VmId, actual_bytes: int) -> None:
        """Notes the size of a VM's balloon. Raises StateError: the VM is unknown."""
        self._vm(vm).balloon_bytes = actual_bytes

    def _round(self, seen: Seen, now_s: float, targets: list[Target]) -> None:
        # Without figures of the host no peer decides anything; all look again at the next round.
        if isinstance(seen, Reading) and not self._halted:
            host = Host(self._total_bytes, seen.available_mib * MIB, seen.margin_mib * MIB)
            running = {vm: it for vm, it in self._vms.items() if it.runs}
            for vm_id, balloon_bytes in self._rule.decide(host, running, now_s).items():
                self._tell(vm_id, self._vms[vm_id], balloon_bytes, targets)
        self._round_at_s = now_s + self._rule.period_s

    def _keep_within_limits(self, vm_id: VmId, vm: PeerVm, targets: list[Target]) -> None:
        if vm.target_bytes > vm.max_bytes:
            self._tell(vm_id, vm, vm.max_bytes, targets)

    def _tell(self, vm_id: VmId, vm: PeerVm, balloon_bytes: int, targets: list[Target]) -> None:
        target_bytes = min(max(balloon_bytes, 0), vm.max_bytes) // PAGE_SIZE * PAGE_SIZE
        # The same target once more makes a guest try again that had not reached it.
        if not target_bytes == vm.target_bytes == vm.balloon_bytes:
            vm.target_bytes = target_bytes
            targets.append(Target(vm_id, target_bytes))

    def _vm(self, vm_id: VmId) -> PeerVm:
        vm = self._vms.get(vm_id)
        if vm is None:
            raise StateError(f"{vm_id} has no policy")
        return vm
