"""Slows down a guest that keeps its device busy for nothing.

Pure arithmetic on a clock that the caller reads. Kicks without work and chains that break a rule
cost a guest next to nothing, but they can keep the device busy on a whole core of the host; so can
inflating, deflating and reporting the same pages over and over. The device charges such work to an
allowance of CPU time that refills at a fixed share of a core. While an allowance is overdrawn, the
queue that caused the work is not served; the other queues are, so a guest that reports much free
memory still has its balloon served.
"""

from balloon_daemon.errors import RingError
from balloon_daemon.named_tuple import NamedTuple

MAX_TURN_S = 0.01
"""Time spent on one queue before the other queues and the controller get their turn. One looping
chain of 32,768 descriptors takes as long."""

WAKE_UP_S = 20e-6
"""CPU time of a turn besides its work: waking up, epoll_wait(2), and reading the kick."""

PAGE_S = 5e-6
"""The most CPU time that a page costs: the page is removed by a madvise of its own."""

ASKED_PAGE_S = MAX_TURN_S / 256
"""CPU time granted for a page that a target asked for, in a turn whose chains are too short to be
useful."""

HONEST_CHAIN_PAGES = 16
"""Chains with fewer pages on average count as waste. Linux sends 256 pages in a chain, and now and
then a shorter last one."""


class Limit(NamedTuple):
    """The CPU time that a guest may use for one kind of work.

    Attributes:
        share: the part of one core by which the allowance refills, for ever.
        allowance_s: seconds of a core that may be used at once.
    """

    share: float
    allowance_s: float


WASTE = Limit(share=0.05, allowance_s=0.05)
"""Turns without useful work: 2,500 kicks at once (``allowance_s`` / ``WAKE_UP_S``)
at most, far more than the needless ones of an honest driver."""

UNASKED = Limit(share=0.25, allowance_s=1.0)
"""Work beyond the targets. An honest guest needs this too: it reports free memory (some 3 GiB at
once, then 1 GiB a second), and when it is out of memory it deflates and inflates again."""


class Pace:
    """One allowance of a guest, and how much of it is left.

    Args:
        limit: the allowance's size, and how fast it refills.
        earned: how much of the allowance the guest has at the beginning, from 0 to 1.
    """

    def __init__(self, limit: Limit, earned: float = 1.0) -> None:
        self._limit = limit
        self._left_s = limit.allowance_s * earned
        self._at_s: float | None = None

    def charge(self, now_s: float, spent_s: float) -> float:
        """Charges a turn.

        Args:
            now_s: the clock, at the turn's end.
            spent_s: how long the turn took.

        Returns:
            Seconds to rest before the next turn; 0 while the allowance lasts.
        """
        share, allowance_s = self._limit.share, self._limit.allowance_s
        if self._at_s is not None:
            self._left_s = min(allowance_s, self._left_s + (now_s - self._at_s) * share)
        self._at_s = now_s
        self._left_s -= spent_s + WAKE_UP_S
        return max(0.0, -self._left_s / share)


class Asked:
    """Counts how many pages the targets still ask the guest to move.

    Args:
        memory_pages: the most 4 KiB pages that targets can ask the guest to move at a time: its
            whole memory, or the host's if that is smaller.
        first_pages: the pages granted for the first target, because this device does not know how
            large the balloon is already.
    """

    def __init__(self, memory_pages: int, first_pages: int) -> None:
        self._memory_pages = memory_pages
        self._first_pages = first_pages
        self._target_pages: int | None = None
        self._left_pages = 0

    def target(self, pages: int) -> None:
        """Grants as many pages as the new target differs from the last one."""
        last, self._target_pages = self._target_pages, pages
        moves = self._first_pages if last is None else abs(pages - last)
        # Cap the granted pages at this memory: grants that the guest never uses would
        # otherwise add up without end.
        self._left_pages = min(self._left_pages + moves, self._memory_pages)

    def take(self, pages: int) -> int:
        """Uses up granted pages; returns how many of ``pages`` the targets had asked for."""
        asked = min(pages, self._left_pages)
        self._left_pages -= asked
        return asked


class Turn(NamedTuple):
    """The result of serving one queue once.

    Attributes:
        chains: how many were taken from the queue.
        pages: how many moved into or out of the balloon, or were reported.
        faults: how many chains broke a rule.
        reports: True: the pages are free page reports, which no target asks for.
        more: True: the turn's time or chain limit ended before the queue was empty.
        broken: why the ring cannot be trusted any more; None while it can.
    """

    chains: int = 0
    pages: int = 0
    faults: int = 0
    reports: bool = False
    more: bool = False
    broken: RingError | None = None


class Account:
    """All allowances of one guest.

    Args:
        memory_pages: the most 4 KiB pages that targets can ask the guest to move at a time: its
            whole memory, or the host's if that is smaller.
        earned: how much of its allowances it has at the beginning, from 0 to 1. A guest that has
            its device started anew over and over must not have full allowances each time.
    """

    def __init__(self, memory_pages: int, earned: float = 1.0) -> None:
        self._asked = Asked(memory_pages, int(memory_pages * earned))
        self._waste = Pace(WASTE, earned)
        self._unasked, self._reports = Pace(UNASKED, earned), Pace(UNASKED, earned)

    def target(self, pages: int) -> None:
        """Notes a new target, which grants work."""
        self._asked.target(pages)

    def charge(self, now_s: float, spent_s: float, turn: Turn) -> float:
        """Charges one turn of one queue to the guest's allowances.

        Args:
            now_s: the clock at the turn's end.
            spent_s: how long the turn took by the clock. The clock also runs while the host gives
                this process no core, which is not the guest's doing, so at most the time that the
                turn's work can take is charged.
            turn: the turn's result.

        Returns:
            Seconds for which that queue is not to be served.
        """
        chains, pages, faults, reports, _, _ = turn
        asked = 0 if reports else self._asked.take(pages)
        useful = not faults and pages >= HONEST_CHAIN_PAGES * chains
        if useful and asked == pages and pages:
            return 0.0
        # Do not charge time in which the host gave this process no core. So charge at most what
        # the longest turn takes: MAX_TURN_S, as much again for a chain that was begun just before
        # its end, and the time to remove the pages.
        spent_s = min(spent_s, 2 * MAX_TURN_S + pages * PAGE_S)
        unasked_s = spent_s * (pages - asked) / pages if pages else 0.0
        wasted_s = 0.0 if useful else max(0.0, spent_s - unasked_s - asked * ASKED_PAGE_S)
        rest_s = 0.0
        if wasted_s or not pages:
            rest_s = self._waste.charge(now_s, wasted_s)
        if asked < pages:
            pace = self._reports if reports else self._unasked
            rest_s = max(rest_s, pace.charge(now_s, unasked_s))
        return rest_s
