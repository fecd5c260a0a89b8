"""Who is squeezed first, and who gets memory back first. Pure.

A VM steps up only when no VM of a lower priority could: all of those are at their maximum, or
something stands against asking them for more. Where all VMs have one priority, as where nobody has
set any, nothing is computed.

It waits no longer than VMs of each lower priority may take to their maximum. A guest that reports
another size again and again never gets there: its level falls whenever its maximum grows. Nor does
a VM wait for its memory longer than VMs of each higher priority may take to get theirs back: one
whose VMM says that it has terabytes never has room for its steps, and is owed all the host has.
"""

from collections import Counter
from collections.abc import Mapping

from balloon_daemon.sizing.balloon_policy import PolicySettings
from balloon_daemon.sizing.decision import Reading, Reason
from balloon_daemon.sizing.host_events import Seen
from balloon_daemon.sizing.row import Row
from balloon_daemon.units import MIB, VmId

PATIENCE = 2
"""How many times longer a VM waits for VMs of another priority than these take to their maximum
while memory is low, or to zero while there is room: they may be late, or left out for a while."""


class Priorities:
    """The priorities of a host's VMs.

    Args:
        rows: the VMs.
        settings: the policies' numbers.
    """

    def __init__(self, rows: Mapping[VmId, Row], settings: PolicySettings) -> None:
        self._rows = rows
        self._numbers = Counter[int]()
        self._settings = settings
        self._low_since_s: float | None = None
        self._room_since_s: dict[VmId, float] = {}
        """For how long there has been room for a VM's own step down."""

    def add(self, row: Row) -> None:
        """Notes a VM that has come."""
        self._numbers[row.priority] += 1

    def remove(self, vm: VmId, row: Row) -> None:
        """Notes that a VM is gone."""
        self._room_since_s.pop(vm, None)
        self._numbers[row.priority] -= 1
        if not self._numbers[row.priority]:
            del self._numbers[row.priority]

    @property
    def differ(self) -> bool:
        """Whether not all VMs have the same priority."""
        return len(self._numbers) > 1

    def saw(self, now_s: float, *, low: bool) -> None:
        """Notes whether memory is low."""
        if not low:
            self._low_since_s = None
        elif self._low_since_s is None:
            self._low_since_s = now_s
            self._room_since_s.clear()

    def objection(self, row: Row, lowest: int | None, now_s: float) -> Reason | None:
        """Why a VM may not step up before others; None: it may.

        Args:
            row: the VM.
            lowest: as ``lowest_that_can_give`` returned it.
            now_s: the clock.
        """
        if lowest is None or row.priority <= lowest or self._low_since_s is None:
            return None
        lower = sum(priority < row.priority for priority in self._numbers)
        patience_s = PATIENCE * self._settings.seconds_to_maximum
        waits = now_s - self._low_since_s <= lower * patience_s
        return Reason.LOWER_FIRST if waits else None

    def lowest_that_can_give(self) -> int | None:
        """The lowest priority of a VM that could step up; None: no VM could, or all priorities are
        equal."""
        if not self.differ:
            return None
        return min((row.priority for row in self._rows.values() if row.can_give), default=None)

    def mib_first(self, vm: VmId, row: Row, seen: Seen, now_s: float) -> int:
        """What VMs of a higher priority are to get back before this one, in MiB.

        Args:
            vm: the VM, whose release is due.
            row: its row.
            seen: the source's present reading.
            now_s: the clock.
        """
        first_mib = self._mib_above(row.priority)
        if not first_mib or not isinstance(seen, Reading):
            return 0
        if seen.available_mib < row.policy.needed_mib(seen):
            self._room_since_s.pop(vm, None)
            return first_mib
        higher = sum(priority > row.priority for priority in self._numbers)
        patience_s = PATIENCE * self._settings.seconds_to_zero
        waited_s = now_s - self._room_since_s.setdefault(vm, now_s)
        return first_mib if waited_s <= higher * patience_s else 0

    def _mib_above(self, priority: int) -> int:
        """What VMs of a higher priority have in their balloons by their targets, in MiB."""
        if not self.differ:
            return 0
        above = (row.told_bytes for row in self._rows.values() if row.priority > priority)
        return sum(above) // MIB
