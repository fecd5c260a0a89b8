"""Takes VMs that come: new ones, and those that another balloond or policy governed. Pure."""

from collections.abc import Callable

from balloon_daemon.sizing.adaptive import Adaptive
from balloon_daemon.sizing.balloon_policy import BalloonPolicy, PolicySettings, max_balloon_bytes
from balloon_daemon.sizing.decision import Reason
from balloon_daemon.sizing.host_events import Added, Found, Restored
from balloon_daemon.sizing.outcome import Outcome
from balloon_daemon.sizing.priorities import Priorities
from balloon_daemon.sizing.protection import Protection
from balloon_daemon.sizing.row import Patience, Row
from balloon_daemon.units import PAGE_SIZE, VmId


class Admission:
    """Makes the rows of VMs that come.

    Args:
        rows: the VMs; is added to.
        settings: the policies' numbers.
        draw: gives a uniform number of [0, 1).
        priorities: tells which VMs are asked for memory first.
        protection: protects the guests of careful VMs.
        adaptive: sizes the balloons of adaptive VMs.
    """

    def __init__(
        self,
        rows: dict[VmId, Row],
        settings: PolicySettings,
        draw: Callable[[], float],
        priorities: Priorities,
        protection: Protection,
        adaptive: Adaptive,
    ) -> None:
        self._rows = rows
        self._settings = settings
        self._draw = draw
        self._priorities = priorities
        self._protection = protection
        self._adaptive = adaptive

    def add(self, event: Added, outcome: Outcome) -> Row:
        """Takes a VM: adopts the balloon that it has; where it has none, sends it the target 0."""
        max_bytes = event.terms.max_bytes(event.vm_mem_bytes)
        policy = BalloonPolicy(max_bytes, self._settings, self._draw)
        row = Row(policy, event.vm_mem_bytes, event.terms, event.balloon_bytes)
        self._govern(event.vm, row, outcome)
        if event.balloon_bytes and row.guard is not None:
            # Adopt the balloon's size to the byte, not the next lower level: a restart of balloond
            # should not change any VM's balloon.
            found = min(event.balloon_bytes // PAGE_SIZE * PAGE_SIZE, max_bytes)
            outcome.settle(event.vm, row, found, Reason.ADOPTED)
        elif event.balloon_bytes:
            outcome.take(event.vm, row, policy.adopt(event.balloon_bytes, outcome.now_s))
        else:
            outcome.tell(event.vm, row, 0)
        return row

    def restored(self, event: Restored) -> BalloonPolicy:
        """A VM's policy, which goes on from another balloond's.

        Raises:
            StateError: no policy can be in that state.
        """
        max_bytes = event.terms.max_bytes(event.vm_mem_bytes)
        # The earlier balloond may have had no floor (memory that the guest keeps) for this VM, or
        # a lower one. If the present floor leaves no balloon (``max_bytes`` is 0), ``restore``
        # would refuse a level above 0. So restore with the maximum without a floor; ``resize``
        # then goes to level 0.
        most = max_bytes or max_balloon_bytes(event.vm_mem_bytes)
        policy = BalloonPolicy.restore(event.state, most, self._settings, self._draw)
        if max_bytes != most:
            policy.resize(max_bytes)
        return policy

    def restore(self, event: Restored, policy: BalloonPolicy, outcome: Outcome) -> Row:
        """Takes a VM with the policy that ``restored`` has made."""
        row = Row(policy, event.vm_mem_bytes, event.terms, event.balloon_bytes)
        self._govern(event.vm, row, outcome)
        outcome.take(event.vm, row, policy.resume(outcome.now_s))
        return row

    def resume(self, found: Found, outcome: Outcome) -> Row:
        """Takes a VM in the state in which another policy governs it now; sends no target.

        Raises:
            StateError: no policy can be in that state.
        """
        max_bytes = found.terms.max_bytes(found.vm_mem_bytes)
        policy = BalloonPolicy.restore(found.state, max_bytes, self._settings, self._draw)
        policy.held = found.held
        row = Row(policy, found.vm_mem_bytes, found.terms, found.balloon_bytes, found.target_bytes)
        row.patience = Patience(*found.patience)
        self._govern(found.vm, row, outcome)
        return row

    def resize(self, vm: VmId, row: Row, vm_mem_bytes: int, outcome: Outcome) -> None:
        """Gives a VM another size: its maximum follows."""
        row.vm_mem_bytes = vm_mem_bytes
        max_bytes = row.terms.max_bytes(vm_mem_bytes)
        if max_bytes != row.policy.max_bytes:
            outcome.take(vm, row, row.policy.resize(max_bytes))

    def _govern(self, vm: VmId, row: Row, outcome: Outcome) -> None:
        self._rows[vm] = row
        self._priorities.add(row)
        self._protection.add(vm, row, outcome)
        self._adaptive.add(vm, row, outcome.now_s)
