"""Times in which the policy asks for nothing more, because an operator has paused it. Pure.

A pause is of one VM, or of all VMs, those that come later too. It only keeps the policy from
asking for more memory. Memory still goes back: to a guest in need, once the host has room again,
and by an operator's release. No pause is stored: a balloond that starts has none.
"""

import math
from collections.abc import Mapping

from balloon_daemon.sizing.decision import Reason
from balloon_daemon.sizing.host_events import Paused, PauseOver, Resumed
from balloon_daemon.sizing.outcome import Outcome
from balloon_daemon.sizing.row import Row
from balloon_daemon.units import VmId


class Pauses:
    """All pauses of a host.

    Args:
        rows: the VMs.
    """

    def __init__(self, rows: Mapping[VmId, Row]) -> None:
        self._rows = rows
        # None stands for all VMs.
        self._until_s: dict[VmId | None, float] = {}

    @property
    def next_s(self) -> float:
        """When the next pause is over; infinity: there is none."""
        return min(self._until_s.values(), default=math.inf)

    @property
    def vms(self) -> tuple[VmId | None, ...]:
        """The VMs that have a pause of their own, and None where there is a pause of all VMs."""
        return tuple(self._until_s)

    def left_s(self, vm: VmId | None, now_s: float) -> float | None:
        """How many seconds are left of a VM's own pause, or of the pause of all VMs (``vm`` None);
        None: there is no such pause."""
        until_s = self._until_s.get(vm)
        return None if until_s is None else max(0.0, until_s - now_s)

    def objection(self, vm: VmId) -> Reason | None:
        """PAUSED where a VM must not be asked for more because of a pause."""
        # Test first whether there is any pause: most hosts never have one, and this method is
        # called for each VM while memory is low.
        if self._until_s and (vm in self._until_s or None in self._until_s):
            return Reason.PAUSED
        return None

    def begin(self, event: Paused, rows: Mapping[VmId, Row], outcome: Outcome) -> None:
        """Begins a pause of some VMs, or of all; a pause that is in force gets the new end.

        A guest that has not reached its target yet is asked for no more than it has given.

        Args:
            event: what the operator asks for.
            rows: the VMs that it concerns.
            outcome: collects the targets and decisions that follow.
        """
        for vm in event.vms or (None,):
            self._until_s[vm] = outcome.now_s + event.for_s
        for vm, row in rows.items():
            if not row.is_held:
                row.policy.held = Reason.PAUSED
            # Keep the target of a guest that does not run: its balloon does not show what it can
            # give. After a snapshot, for example, a balloon is emptied and filled again.
            stands = row.guard is not None and not row.guard.runs
            if row.actual_bytes < row.told_bytes and not stands:
                outcome.settle(vm, row, row.actual_bytes, Reason.PAUSED)

    def end(self, event: Resumed) -> None:
        """Ends the pauses of VMs, or all pauses there are."""
        for vm in event.vms or self.vms:
            self._until_s.pop(vm, None)
        self._let_go()

    def remove(self, vm: VmId) -> None:
        """Forgets a VM."""
        self._until_s.pop(vm, None)

    def pass_time(self, outcome: Outcome) -> None:
        """Ends the pauses whose time is over."""
        for vm, until_s in tuple(self._until_s.items()):
            if until_s <= outcome.now_s:
                del self._until_s[vm]
                outcome.note(PauseOver(vm))
        self._let_go()

    def clear(self) -> None:
        """Forgets all pauses."""
        self._until_s.clear()

    def _let_go(self) -> None:
        # Clear ``held`` now, not at the next low memory. Until then the VM would count as one that
        # cannot give (``Row.can_give``), and VMs of a higher priority would be asked with it.
        for vm, row in self._rows.items():
            if row.policy.held is Reason.PAUSED and self.objection(vm) is None:
                row.policy.held = None
