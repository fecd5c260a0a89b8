"""Who is squeezed first, and who gets memory back first. Pure.

A VM steps up only when no VM of a lower priority could: all of those are at their maximum, or
something stands against asking them for more. Where all VMs have one priority, as where nobody has
set any, nothing is computed.
"""

from collections import Counter
from collections.abc import Mapping

from balloon_daemon.sizing.balloon_policy import AvailableMemoryTimer, Step
from balloon_daemon.sizing.decision import Reading
from balloon_daemon.sizing.host_events import Seen
from balloon_daemon.sizing.row import Row
from balloon_daemon.units import MIB, VmId


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
        """Whether not all VMs have the same priority."""
        return len(self._numbers) > 1

    def lowest_that_can_give(self) -> int | None:
        """The lowest priority of a VM that could step up; None: no VM could, or all priorities are
        equal."""
        if not self.differ:
            return None
        return min((row.priority for row in self._rows.values() if row.can_give), default=None)

    def mib_above(self, priority: int) -> int:
        """What VMs of a higher priority have in their balloons by their targets, in MiB."""
        if not self.differ:
            return 0
        above = (row.told_bytes for row in self._rows.values() if row.priority > priority)
        return sum(above) // MIB

    def release(self, row: Row, seen: Seen, now_s: float) -> Step:
        """Steps a VM whose release is due. VMs of a higher priority get memory back first: for
        this VM the memory in their balloons does not count as available."""
        first_mib = self.mib_above(row.priority)
        if not first_mib or not isinstance(seen, Reading):
            return row.policy.step(AvailableMemoryTimer(seen), now_s)
        left = seen._replace(available_mib=seen.available_mib - first_mib)
        step = row.policy.step(AvailableMemoryTimer(left), now_s)
        needed_mib = step.decision.needed_mib
        if needed_mib is not None:
            needed_mib += first_mib
        return step._replace(decision=step.decision._replace(reading=seen, needed_mib=needed_mib))
