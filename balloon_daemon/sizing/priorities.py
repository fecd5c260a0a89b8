"""Who is squeezed first, and who gets memory back first. Pure.

A VM steps up only when no VM of a lower priority could: all of those are at their maximum, or
something stands against asking them for more. Where all VMs have one priority, as where nobody has
set any, nothing is computed.

A VM's size, and whether it is there, is what its VMM says, so no VM waits for another without end.
A VM that attaches anew, or is resized, again and again never reaches its maximum; one that claims
more memory than the host has never gets a step back. So a VM waits for each other priority as many
times as that priority has steps, and then no longer until the host has had memory for a while.
"""

from collections import Counter
from collections.abc import Mapping

from balloon_daemon.sizing.balloon_policy import AvailableMemoryTimer, Step
from balloon_daemon.sizing.decision import Reading
from balloon_daemon.sizing.host_events import Seen
from balloon_daemon.sizing.row import Row
from balloon_daemon.units import MIB, VmId

MORE_WAITS = 2
"""A VM waits for another priority as many times as that priority has steps, and this many times
more: VMs' rechecks are not at the same moments, and the jitter lets one VM have 17 rechecks in the
time of another one's 16."""


class Priorities:
    """The priorities of a host's VMs.

    Args:
        rows: the VMs.
    """

    def __init__(self, rows: Mapping[VmId, Row]) -> None:
        self._rows = rows
        self._numbers = Counter[int]()

    def add(self, row: Row) -> None:
        """Notes a VM that has come."""
        self._numbers[row.priority] += 1

    def remove(self, row: Row) -> None:
        """Notes that a VM is gone."""
        self._numbers[row.priority] -= 1
        if not self._numbers[row.priority]:
            del self._numbers[row.priority]

    @property
    def differ(self) -> bool:
        """Whether some VM has another priority than the others."""
        return len(self._numbers) > 1

    def lowest_that_can_give(self) -> int | None:
        """The lowest priority of a VM whose balloon could be enlarged by a step; None: no VM's
        could, or all priorities are equal."""
        if not self.differ:
            return None
        return min((row.priority for row in self._rows.values() if row.can_give), default=None)

    def must_wait(self, row: Row, lowest: int | None, now_s: float) -> bool:
        """Whether a VM must not step up at low memory, because VMs of a lower priority can.

        Args:
            row: the VM.
            lowest: what ``lowest_that_can_give`` is.
            now_s: the present time.
        """
        if lowest is None or row.priority <= lowest:
            return False
        settings, patience = row.policy.settings, row.patience
        last_s = patience.waited_at_s
        if last_s is None or now_s - last_s > settings.release_after_s:
            patience.waits_up = 0  # Since the last wait balloons may have shrunk.
        patience.waits_up += 1
        patience.waited_at_s = now_s
        lower = sum(number < row.priority for number in self._numbers)
        return patience.waits_up <= lower * (settings.steps + MORE_WAITS)

    def release(self, row: Row, seen: Seen, now_s: float) -> Step:
        """Steps a VM whose release is due. VMs of a higher priority get memory back first: for
        this VM the memory in their balloons does not count as available."""
        first_mib = self._mib_first(row)
        if not first_mib or not isinstance(seen, Reading):
            return row.policy.step(AvailableMemoryTimer(seen), now_s)
        left = seen._replace(available_mib=seen.available_mib - first_mib)
        step = row.policy.step(AvailableMemoryTimer(left), now_s)
        needed_mib = step.decision.needed_mib
        if needed_mib is not None:
            if left.available_mib < needed_mib <= seen.available_mib:
                row.patience.waits_down += 1
            needed_mib += first_mib
        return step._replace(decision=step.decision._replace(reading=seen, needed_mib=needed_mib))

    def _mib_first(self, row: Row) -> int:
        """How much more than a VM's own step needs must be available for its step down, in MiB:
        what VMs of a higher priority have in their balloons, by their targets."""
        if not self.differ:
            return 0
        steps, priority = row.policy.settings.steps, row.priority
        higher = sum(number > priority for number in self._numbers)
        if row.patience.waits_down >= higher * (steps + MORE_WAITS):
            return 0
        above = (each.told_bytes for each in self._rows.values() if each.priority > priority)
        return sum(above) // MIB
