"""Slowing down a guest that keeps its device busy for nothing.

Pure arithmetic on a clock that the caller reads. Kicks without work and chains that break a rule
cost a guest next to nothing, and the device a core of the host; so does giving up, taking back and
reporting the same pages over and over. What it costs is taken out of an allowance, and once that
is used up the queue that it came from rests until it is earned again. The others go on: a guest
that reports much free memory has its balloon served meanwhile.
"""

from dataclasses import dataclass
from typing import NamedTuple

from balloon_daemon.errors import RingError

MAX_TURN_S = 0.01
"""Time spent on one queue before the others and the controller get their turn. A chain of 32,768
descriptors that loops takes as much by itself."""

WAKE_UP_S = 20e-6
"""What a turn costs besides its work: epoll_wait, reading the kick, waking up."""

PAGE_S = 5e-6
"""What a page costs at the most: one that is removed by itself."""

ASKED_PAGE_S = MAX_TURN_S / 256
"""What a page that was asked for may cost in a turn with chains of no use."""

HONEST_CHAIN_PAGES = 16
"""Linux sends 256 pages in a chain, and now and then a rest."""


@dataclass(frozen=True, slots=True)
class Limit:
    """What a guest may cost.

    Attributes:
        share: of one core, for ever.
        allowance_s: seconds of a core, at once.
    """

    share: float
    allowance_s: float


WASTE = Limit(share=0.05, allowance_s=0.05)
"""Turns without any work. 5,000 kicks, far more than an honest driver sends too many."""

UNASKED = Limit(share=0.25, allowance_s=1.0)
"""Work beyond what the targets asked for. An honest guest has it too: it reports free memory (some
3 GiB at once, then 1 a second), takes pages back when it is out of memory, gives them up anew."""


class Pace:
    """One allowance of a guest.

    Args:
        limit: what it may cost.
        earned: how much of the allowance it has at the beginning, from 0 to 1.
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
    """How much of a guest's work its targets have asked for.

    Args:
        memory_pages: all that the guest has, in 4 KiB pages.
        first_pages: what the first target asks for at most: nobody knows how far it is from where
            the balloon is.
    """

    def __init__(self, memory_pages: int, first_pages: int) -> None:
        self._memory_pages = memory_pages
        self._first_pages = first_pages
        self._target_pages: int | None = None
        self._left_pages = 0

    def target(self, pages: int) -> None:
        """A new target: so many pages are to move as it is away from the last one."""
        last, self._target_pages = self._target_pages, pages
        moves = self._first_pages if last is None else abs(pages - last)
        # What is never used must not add up.
        self._left_pages = min(self._left_pages + moves, self._memory_pages)

    def take(self, pages: int) -> int:
        """Takes work off it; returns how many of the pages were asked for."""
        asked = min(pages, self._left_pages)
        self._left_pages -= asked
        return asked


class Turn(NamedTuple):
    """What one queue brought in a turn.

    Attributes:
        chains: taken from it.
        pages: that moved.
        faults: chains that broke a rule.
        reports: they were reports of free pages, which no target asks for.
        more: the queue may have more: its turn was over before its chains were.
        broken: why its ring cannot be trusted any more; None where it can.
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
        memory_pages: all that the guest has, in 4 KiB pages.
        earned: how much of its allowances it has at the beginning, from 0 to 1. A guest that
            has its device made anew over and over must not have them anew each time.
    """

    def __init__(self, memory_pages: int, earned: float = 1.0) -> None:
        self._asked = Asked(memory_pages, int(memory_pages * earned))
        self._waste = Pace(WASTE, earned)
        self._unasked, self._reports = Pace(UNASKED, earned), Pace(UNASKED, earned)

    def target(self, pages: int) -> None:
        """A new target, which asks for work."""
        self._asked.target(pages)

    def charge(self, now_s: float, spent_s: float, turn: Turn) -> float:
        """Charges what one queue brought.

        Args:
            now_s: the clock, at its end.
            spent_s: how long it took by the clock, which runs on while we wait for a core: that is
                not the guest's doing, so no more counts than its work may take.
            turn: what it was.

        Returns:
            Seconds for which that queue is to rest.
        """
        chains, pages, faults, reports, _, _ = turn
        asked = 0 if reports else self._asked.take(pages)
        useful = not faults and pages >= HONEST_CHAIN_PAGES * chains
        if useful and asked == pages and pages:
            return 0.0
        # A turn, and the chain that was begun before its time was over.
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
