"""An adaptive VM: how fast its balloon grows, and when its target last rose and fell. Pure."""

import math
from collections import deque
from dataclasses import dataclass, field

from balloon_daemon.sizing.decision import Reason
from balloon_daemon.sizing.guard import LATE_S
from balloon_daemon.sizing.need import Figures
from balloon_daemon.sizing.row import Row
from balloon_daemon.sizing.spare import Spare, spare_of
from balloon_daemon.units import MIB, PAGE_SIZE, VmId

FIRST_RATE = 256.0 * MIB
LEAST_RATE = 16.0 * MIB
"""The rate at which a balloon is assumed to grow, in bytes a second, until its growth was
measured, and the least rate assumed afterwards. A guest that has only a tenth of a CPU gives 30
MiB a second; one below 15 is stalled (``stall``)."""

AHEAD_S = 2.0
"""A target exceeds the balloon's size by what the guest gives in so many seconds: one until the
next look, and one by which a VMM may report the size late."""

LONG_S = 10.0
"""Growth over a longer time shows no rate: the balloon may have stood still for most of it."""

SOON_S = 3.0
"""A guest keeps what its own programs take in so many seconds at their present rate: its
statistics are a second old, and giving back takes two."""

FALLS_SHARE = 1 / 32
"""A guest's programs count as taking memory if they take more than this share of the VM in a
second. Less cannot be told from the error of adding statistics to a balloon's size that was seen
at another time."""

OWN_S = 0.5
"""Statistics less than this apart are not compared to find how fast programs take memory."""

BACKED = 0.25
"""If the host backs a smaller share of a guest's free memory than this, other guests are asked
first: a balloon would take four times as much from the guest as it brings the host."""

SMALL_SHARE = 64
"""Changes of less than a 64th of a balloon's maximum, a quarter of a step of the profile seed, are
too small to matter."""


@dataclass(slots=True)
class AdaptiveVm:
    """An adaptive VM.

    Attributes:
        vm: its id.
        row: its policy, size and target, as ``HostPolicy`` keeps them.
        rate: how fast its balloon grows, in bytes a second.
        told_bytes: its target at the last look.
        actual_bytes: its balloon's size at the last look.
        raised_at_s: when its target rose last.
        lowered_at_s: when its target was seen to have fallen last.
        low_looks: how many looks in a row found memory low while it could be asked.
        spare: what its guest can spare; None: unknown.
        spares: what its guest can spare of each kind of memory (``asking.Kind``), in whole pages,
            and no more than it may be asked for.
        asked_bytes: how much more it is asked for at this look.
        against: what is against asking it for more; None: nothing is.
        sizes: its balloon's recent sizes, each with the time at which it was seen.
        own: the time of some statistics, and the sum of what its guest had available and in its
            balloon then.
        falls: by how much that sum has fallen since, in bytes a second.
        gives_cache: whether it was asked for page cache, and has not got its memory back since.
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
    spares: tuple[int, int, int] = (0, 0, 0)
    asked_bytes: int = 0
    against: Reason | None = None
    sizes: deque[tuple[float, int]] = field(default_factory=deque)
    own: tuple[float, int] | None = None
    falls: float = 0.0
    gives_cache: bool = False

    @property
    def left_bytes(self) -> int:
        """How much more the VM may be asked for at this look."""
        row = self.row
        return max(0, row.policy.max_bytes - row.told_bytes - self.asked_bytes)

    @property
    def small_bytes(self) -> int:
        """A change of the target by less than this does not matter."""
        return self.row.policy.max_bytes // SMALL_SHARE

    @property
    def ahead_bytes(self) -> int:
        """The size that its balloon can have in ``AHEAD_S``, by how fast it grows."""
        return counted_bytes(self.row) + int(self.rate * AHEAD_S)

    def measure(self, passed_s: float, now_s: float) -> None:
        """Notes how its target and its balloon have changed since the last look."""
        row, actual_bytes = self.row, counted_bytes(self.row)
        if row.told_bytes < self.told_bytes:
            self.lowered_at_s, self.gives_cache = now_s, False
        grown_bytes = actual_bytes - self.actual_bytes
        if self.told_bytes > self.actual_bytes and grown_bytes >= 0 and 0 < passed_s < LONG_S:
            rate = grown_bytes / passed_s
            if actual_bytes < self.told_bytes:
                # The guest has not reached its target, so it gave as fast as it could. Take the
                # mean with the rate before: of two reports one may be late, and the other early.
                self.rate = max(LEAST_RATE, (self.rate + rate) / 2)
            else:
                self.rate = max(self.rate, rate)
        self.told_bytes, self.actual_bytes = row.told_bytes, actual_bytes
        sizes = self.sizes
        if len(sizes) > 1 and sizes[-2][1] == sizes[-1][1] == actual_bytes:
            sizes.pop()  # Keep the first and the last time of equal sizes only.
        sizes.append((now_s, actual_bytes))
        while len(sizes) > 1 and now_s - sizes[1][0] > LATE_S:
            sizes.popleft()

    def look_at_spare(self, now_s: float, *, low: bool) -> None:
        """Sets ``spare`` and ``spares`` to what its guest can spare now.

        Args:
            now_s: the present time.
            low: whether memory is low. Where it is not, nothing is asked of a guest whose
                statistics are unknown.
        """
        self.spare = self._spare(now_s)
        policy, spare = self.row.policy, self.spare
        left = policy.max_bytes - self.row.told_bytes
        if spare is None:
            # Unknown: take what the profile seed would take in a second.
            step = -(-policy.max_bytes // policy.settings.steps)
            self.spares = (_pages(min(step, left)) if low else 0, 0, 0)
            return
        free = _pages(min(spare.free_bytes, left))
        cache = _pages(min(spare.cache_bytes, left - free))
        self.spares = (free, 0, cache) if spare.backed_share >= BACKED else (0, free, cache)

    def _spare(self, now_s: float) -> Spare | None:
        row, guard = self.row, self.row.guard
        figures = None if guard is None else guard.known(now_s)
        if guard is None or figures is None:
            return None
        self._note_own(figures)
        taken_bytes = row.told_bytes - self._size_at(figures.at_s)
        return spare_of(
            figures,
            row.vm_mem_bytes,
            taken_bytes=max(0, taken_bytes) + int(self.falls * SOON_S),
            untouched_bytes=guard.proof.untouched_bytes,
            reads_cache=guard.reads_cache,
        )

    def _note_own(self, figures: Figures) -> None:
        """Notes how fast the guest's own programs take memory: how much the sum of its available
        memory and its balloon has fallen since the statistics before."""
        if figures.available_bytes is None:
            return
        before, at_s = self.own, figures.at_s
        if before is not None and before[0] == at_s:
            return
        own = figures.available_bytes + self._size_at(at_s)
        if before is None or at_s - before[0] >= OWN_S:
            self.own = at_s, own
        if before is not None and OWN_S <= at_s - before[0] < LONG_S:
            falls = (before[1] - own) / (at_s - before[0])
            self.falls = falls if falls > FALLS_SHARE * self.row.vm_mem_bytes else 0.0

    def _size_at(self, at_s: float) -> int:
        """The balloon's size at a time, interpolated between two looks: statistics are seconds
        old, and do not show yet what went into the balloon since."""
        after = None
        if self.sizes[-1][0] <= at_s:
            return self.sizes[-1][1]
        for since_s, size in reversed(self.sizes):
            if since_s <= at_s:
                if after is None:
                    return size
                share = (at_s - since_s) / (after[0] - since_s)
                return size + int(share * (after[1] - size))
            after = since_s, size
        return self.sizes[0][1]


def _pages(size_bytes: int) -> int:
    return size_bytes // PAGE_SIZE * PAGE_SIZE


def counted_bytes(row: Row) -> int:
    """The part of the balloon's size that counts as memory which the host may have to give back.

    What a balloon has beyond its target is about to go back to its guest, so other guests are
    asked for as much. But a driver can write any size, of a VM of any size. So beyond the target
    only what was asked for before the target was lowered counts, for a while, and no more of it
    than the host's own figures allow (``proof``), which are not known of a VM with the profile
    seed.
    """
    allowed = 0 if row.guard is None else min(row.guard.proof.most_bytes, row.back_bytes)
    return min(row.actual_bytes, row.policy.max_bytes, max(row.told_bytes, allowed))


def settled_bytes(row: Row) -> int:
    """The size that a balloon will have if its guest does what it was told to: its target; its
    present size, if somebody else sets the size (CONTESTED) or the guest does not run."""
    guard = row.guard
    stands = guard is not None and (guard.left is Reason.CONTESTED or not guard.runs)
    return counted_bytes(row) if stands else row.told_bytes
