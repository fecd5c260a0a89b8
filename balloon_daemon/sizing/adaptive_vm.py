"""An adaptive VM: how fast its balloon grows, and when its target went which way. Pure."""

import math
from dataclasses import dataclass

from balloon_daemon.sizing.decision import Reason
from balloon_daemon.sizing.row import Row
from balloon_daemon.sizing.spare import Spare
from balloon_daemon.units import MIB, VmId

FIRST_RATE = 256.0 * MIB
LEAST_RATE = 16.0 * MIB
"""How fast a balloon is taken to grow, in bytes a second, until it was seen to, and at least. A
guest that has only a tenth of a CPU gives 30 MiB a second; one below 15 is stalled (``stall``)."""

AHEAD_S = 2.0
"""A target is ahead of the balloon by what the guest gives in so many seconds: until the next
look, and in the second by which VMMs may be late in reporting."""

LONG_S = 10.0
"""Growth over a longer time shows no rate: the balloon may have stood still for most of it."""

SMALL_SHARE = 64
"""Changes of less than a 64th of a balloon's maximum, a quarter of the seed's step, are too small
to matter."""


@dataclass(slots=True)
class AdaptiveVm:
    """An adaptive VM.

    Attributes:
        vm: which.
        row: its row.
        rate: how fast its balloon grows, in bytes a second.
        told_bytes: its target at the last look.
        actual_bytes: its balloon's size at the last look.
        raised_at_s: when its target rose last.
        lowered_at_s: when its target was seen to have fallen last.
        low_looks: how often in a row it could be asked, and memory was low.
        spare: what its guest can spare; None: unknown.
        asked_bytes: how much more it is asked for at this look.
        against: what is against asking it for more; None: nothing is.
    """

    vm: VmId
    row: Row
    rate: float = FIRST_RATE
    told_bytes: int = 0
    actual_bytes: int = 0
    raised_at_s: float = -math.inf
    lowered_at_s: float = -math.inf
    low_looks: int = 0
    spare: Spare | None = None
    asked_bytes: int = 0
    against: Reason | None = None

    @property
    def left_bytes(self) -> int:
        """What it may still be asked for."""
        row = self.row
        return max(0, row.policy.max_bytes - row.told_bytes - self.asked_bytes)

    @property
    def small_bytes(self) -> int:
        """What is too small a change to matter."""
        return self.row.policy.max_bytes // SMALL_SHARE

    @property
    def ahead_bytes(self) -> int:
        """The size that its balloon can have soon, by how fast it grows."""
        return self.row.actual_bytes + int(self.rate * AHEAD_S)

    def measure(self, passed_s: float, now_s: float) -> None:
        """Notes how its target and its balloon have changed since the last look."""
        row = self.row
        if row.told_bytes < self.told_bytes:
            self.lowered_at_s = now_s
        grown_bytes = row.actual_bytes - self.actual_bytes
        if self.told_bytes > self.actual_bytes and grown_bytes >= 0 and 0 < passed_s < LONG_S:
            rate = grown_bytes / passed_s
            if row.actual_bytes < self.told_bytes:
                # The guest had more to give all the time. Take two looks' mean: of two reports
                # one may be late, and the other one early.
                self.rate = max(LEAST_RATE, (self.rate + rate) / 2)
            else:
                self.rate = max(self.rate, rate)
        self.told_bytes, self.actual_bytes = row.told_bytes, row.actual_bytes

    def look_at_spare(self, now_s: float) -> None:
        """Looks what its guest can spare now."""
        guard, row = self.row.guard, self.row
        if guard is not None:
            self.spare = guard.spare(row.vm_mem_bytes, row.told_bytes, now_s)


def settled_bytes(row: Row) -> int:
    """The size that a balloon will have if its guest does what it was told to."""
    guard = row.guard
    stands = guard is not None and (guard.left is Reason.CONTESTED or not guard.runs)
    return row.actual_bytes if stands else row.told_bytes
