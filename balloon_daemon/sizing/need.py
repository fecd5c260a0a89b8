"""Tells from a guest's statistics whether it needs the memory that was taken from it. Pure.

Theory of operation
    Little available memory shows that programs need memory, never that the page cache does: a
    guest that reads the same files from its disk again and again has plenty of available memory. A
    page cache that is too small shows in disk reads and major faults, in the second in which they
    begin, but only if the guest has next to no free memory: while memory is free, Linux drops no
    page cache, so the guest is reading data for the first time.

    A guest that reads a lot anyway is told apart by its *base*: its usual rates while its balloon
    was empty. The statistics are cumulative counters, so samples each 30 s give exact means, and
    the base is the median of several. One mean over all of that time would not do: a guest that
    had just read 300 MiB when it was squeezed had a base of 115 MiB a second, and its thrashing
    was not noticed. A guest that was squeezed before there were two means has no base,
    which counts as 0: if that guest reads a lot anyway, it gets its memory back once without need,
    and then has a base.

Source:
    Guests of Linux 6.1 and 7.2 (1 GiB, one CPU), squeezed by 32 MiB a second under 14 loads. With
    these numbers no guest was in need that was idle, held cold page cache, streamed a large disk,
    started short processes or mapped a file for the first time; a guest whose files or programs
    did not fit was in need within a second of its first refaults.
"""

import math
from collections import deque
from collections.abc import Sequence

from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.sizing.decision import Sign
from balloon_daemon.units import MIB, PAGE_SIZE

AVAILABLE_SHARE = 0.08
AVAILABLE_BYTES = 128 * MIB
"""A guest is in need if its available memory is less than 8 % of the VM, or less than 128 MiB.
Stalled allocations, direct reclaim and OOM kills begin only with less, so need is seen earlier."""

SWAP_IN_BYTES = 16 * PAGE_SIZE
"""A guest is in need if it reads so much from swap in a second. Writing to swap is no need: a
guest writes idle memory there."""

FREE_SHARE = 0.12
"""Only a guest with less free memory than 12 % of the VM can be in need of page cache: Linux fills
free memory with page cache first, and reclaims none before that."""

DISK_BYTES, DISK_FACTOR = 2 * MIB, 1.5
FAULTS, FAULTS_FACTOR = 4, 2.5
"""A guest with little free memory is in need if its disk reads in a second exceed 2 MiB plus 1.5
times the base, or its major faults exceed 4 plus 2.5 times the base. The factor for faults is
larger because they vary more; a guest that reads its files by read(2) has no major faults."""

MEAN_S = 3.0
"""Rates are means over so many seconds: over a shorter time the start of a program looks like
need."""

SHORTEST_S = MEAN_S - 0.5
"""A mean is over more seconds than this. It may be over less than ``MEAN_S``, because samples do
not come exactly each second."""

FRESH_S = 4.0
"""Statistics older than this show no sign of need."""

STALE_S = 5.0
"""A guest whose statistics are older than this is squeezed no further."""

CALM_AFTER_S = 30.0
"""Means for the base begin so many seconds after a balloon was emptied: until then a guest reads
back the page cache that the balloon has cost it (half a minute, from a disk of 10 MiB/s)."""

BASE_S = 120.0
"""The base is the median of the means of the last so many seconds. Each mean is over about
``MEAN_S``, or from one sample to the next if samples are rarer."""

BASE_MEANS = 2
"""The base needs so many means. The median of an even number is the lower of the two means in the
middle, so that a burst in one of two means does not become the base."""


UNSAID_S = 60.0
"""After statistics without the available memory, a guest counts for so many seconds as a guest
that does not send it: otherwise a guest that omits it now and then would change its limits each
second."""


class Figures(NamedTuple):
    """A guest's statistics, as far as they show need; None for a figure that is unknown.

    Attributes:
        at_s: when the guest sent them, on CLOCK_MONOTONIC.
        available_bytes: memory that could be had without swapping.
        free_bytes: memory that nothing uses.
        swap_in_bytes: read from swap, since the guest began.
        major_faults: page faults that had to read a file or swap, since the guest began.
        oom_kills: processes killed for lack of memory, since the guest began.
        disk_read_bytes: read from its disks, since its VMM or its guest began.
    """

    at_s: float
    available_bytes: int | None = None
    free_bytes: int | None = None
    swap_in_bytes: int | None = None
    major_faults: int | None = None
    oom_kills: int | None = None
    disk_read_bytes: int | None = None


_BASES = ("disk_read_bytes", "major_faults")
_COUNTERS = ("swap_in_bytes", "major_faults", "oom_kills", "disk_read_bytes")


def least_available_bytes(vm_mem_bytes: int) -> float:
    """With less available memory than this a guest is in need."""
    return max(AVAILABLE_SHARE * vm_mem_bytes, AVAILABLE_BYTES)


class NeedRule:
    """Judges by one guest's statistics whether the guest is in need."""

    def __init__(self) -> None:
        self._recent = deque[Figures]()
        self._killed = False
        self._emptied_at_s: float | None = None
        self._calm: Figures | None = None
        """The statistics with which the next mean for the base begins; None: no mean may begin."""
        # (time, disk reads a second, major faults a second).
        self._means = deque[tuple[float, float, float]]()
        self._disk_base = self._faults_base = 0.0
        self._unsaid_until_s = -math.inf
        self.reads_cache = False
        """Whether the guest read so much more from its disks than usual at the last ``signs``, or
        had so many more major faults, that it would be in need with little free memory."""

    @property
    def last(self) -> Figures | None:
        """The last statistics; None: there are none."""
        return self._recent[-1] if self._recent else None

    @property
    def last_at_s(self) -> float | None:
        """When the guest sent its last statistics; None: never."""
        return self._recent[-1].at_s if self._recent else None

    @property
    def bases(self) -> tuple[float, float]:
        """The base of disk reads and that of major faults, each a second; 0: there is none."""
        return self._disk_base, self._faults_base

    def resume(self, bases: tuple[float, float]) -> None:
        """Goes on from another rule's ``bases``."""
        self._disk_base, self._faults_base = bases

    def knows_available(self, now_s: float) -> bool:
        """Whether all statistics of the last minute said how much memory is available."""
        return now_s >= self._unsaid_until_s

    def take(self, figures: Figures, *, squeezed: bool) -> None:
        """Takes a guest's statistics, in the order in which it sent them.

        Args:
            figures: the statistics; the same ones again change nothing.
            squeezed: whether its balloon holds memory, or is to hold some.
        """
        recent = self._recent
        if recent:
            if figures.at_s <= recent[-1].at_s:
                return
            if _began_anew(recent[-1], figures):
                recent.clear()
                self._calm = None
        self._killed = bool(recent) and _grown(recent[-1], figures, "oom_kills") > 0
        recent.append(figures)
        if figures.available_bytes is None:
            self._unsaid_until_s = figures.at_s + UNSAID_S
        while len(recent) > 2 and figures.at_s - recent[1].at_s > SHORTEST_S:
            recent.popleft()
        self._take_base(figures, squeezed=squeezed)

    def forget(self) -> None:
        """Forgets all statistics, because the guest begins anew or was suspended."""
        self._recent.clear()
        self._calm = None
        self._killed = False

    def signs(self, now_s: float, vm_mem_bytes: int, *, stuck: bool) -> frozenset[Sign]:
        """What shows that the guest is in need; nothing where its statistics are not fresh.

        Args:
            now_s: the present time.
            vm_mem_bytes: the VM's size. The guest's own total may leave the balloon out.
            stuck: whether it has given nothing for long although it is asked for more.
        """
        last_at_s = self.last_at_s
        self.reads_cache = False
        if last_at_s is None or now_s - last_at_s > FRESH_S:
            return frozenset()
        last = self._recent[-1]
        found = set[Sign]()
        least = least_available_bytes(vm_mem_bytes)
        if last.available_bytes is not None and last.available_bytes < least:
            found.add(Sign.LITTLE_AVAILABLE)
        if self._rate("swap_in_bytes") >= SWAP_IN_BYTES:
            found.add(Sign.SWAPS_IN)
        if self._killed:
            found.add(Sign.KILLED)
        cache = self._cache_signs()
        self.reads_cache = bool(cache)
        if last.free_bytes is not None and last.free_bytes < FREE_SHARE * vm_mem_bytes:
            found |= cache
            if stuck:
                found.add(Sign.STUCK)
        return frozenset(found)

    def _cache_signs(self) -> set[Sign]:
        """The signs of a page cache that is too small; signs of need only if the guest has little
        free memory (``FREE_SHARE``)."""
        found = set[Sign]()
        if self._rate("disk_read_bytes") >= DISK_BYTES + DISK_FACTOR * self._disk_base:
            found.add(Sign.READS_DISK)
        if self._rate("major_faults") >= FAULTS + FAULTS_FACTOR * self._faults_base:
            found.add(Sign.FAULTS)
        return found

    def _take_base(self, figures: Figures, *, squeezed: bool) -> None:
        calm, self._calm, at_s = self._calm, figures, figures.at_s
        means = self._means
        if squeezed:
            self._emptied_at_s, self._calm = at_s, None
            means.clear()
        elif self._emptied_at_s is not None and at_s - self._emptied_at_s < CALM_AFTER_S:
            self._calm = None
        elif calm is not None:
            seconds = at_s - calm.at_s
            if seconds <= SHORTEST_S:
                self._calm = calm
                return
            disk, faults = (_grown(calm, figures, name) for name in _BASES)
            means.append((at_s, disk / seconds, faults / seconds))
            while at_s - means[0][0] > BASE_S:
                means.popleft()
            if len(means) >= BASE_MEANS:
                _, disks, majors = zip(*means, strict=True)
                self._disk_base, self._faults_base = _median(disks), _median(majors)

    def _rate(self, name: str) -> float:
        """A counter's growth in a second, as a mean over the recent statistics; 0 where the
        counter is unknown."""
        first, last = self._recent[0], self._recent[-1]
        seconds = last.at_s - first.at_s
        return _grown(first, last, name) / seconds if seconds > 0 else 0.0


def _median(rates: Sequence[float]) -> float:
    """The median; of an even number of rates, the lower of the two in the middle. Python's module
    ``statistics`` has it (median_low), but imports ten other modules."""
    return sorted(rates)[(len(rates) - 1) // 2]


def _grown(before: Figures, after: Figures, name: str) -> int:
    """How much a counter has grown; 0 where either is unknown."""
    first, last = getattr(before, name), getattr(after, name)
    return 0 if first is None or last is None else last - first


def _began_anew(before: Figures, after: Figures) -> bool:
    """Whether a counter is less than before: the guest was started again."""
    return any(_grown(before, after, name) < 0 for name in _COUNTERS)
