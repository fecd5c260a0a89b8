"""Slowing down a guest that keeps its device busy for nothing.

Pure arithmetic on a clock that the caller reads. Kicks without work and chains that break a rule
cost a guest next to nothing, and the device a core of the host; so does giving up, taking back and
reporting the same pages over and over. What it costs is taken out of an allowance, and once that
is used up the device does not listen until it is earned again.
"""

from dataclasses import dataclass

WAKE_UP_S = 20e-6
"""What a turn costs besides its work: epoll_wait, reading the kick, waking up."""


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
    """The allowance of one guest.

    Args:
        limit: what it may cost.
    """

    def __init__(self, limit: Limit) -> None:
        self._limit = limit
        self._left_s = limit.allowance_s
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
        memory_pages: all that the guest has, in 4 KiB pages: what a first target can ask for,
            as it may be far from where the balloon is.
    """

    def __init__(self, memory_pages: int) -> None:
        self._memory_pages = memory_pages
        self._target_pages: int | None = None
        self._left_pages = 0

    def target(self, pages: int) -> None:
        """A new target: so many pages are to move as it is away from the last one."""
        last, self._target_pages = self._target_pages, pages
        moves = self._memory_pages if last is None else abs(pages - last)
        # What is never used must not add up.
        self._left_pages = min(self._left_pages + moves, self._memory_pages)

    def take(self, pages: int) -> float:
        """Takes work off it; returns the part that nobody asked for, from 0 to 1."""
        beyond = max(0, pages - self._left_pages)
        self._left_pages = max(0, self._left_pages - pages)
        return beyond / pages
