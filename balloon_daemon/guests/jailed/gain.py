"""Compares the pages that a guest gave with those that were freed for the host.

Pure. A device counts its work (``Progress``). ``Gain`` computes from these counters how many pages
were given but not freed, by cause, and notices when giving more would take memory from the guest
and free next to none for the host.
"""

from balloon_daemon.events import LossCause
from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.tube.messages import Progress

WINDOW_PAGES = 4096
"""How many pages (16 MiB) a guest must give before the freed part of them is judged. A contiguous
run of pages may begin and end in the middle of a 2 MiB huge page, which is freed only as a whole.
So 511 pages at each end may not be freed yet although nothing is wrong; these 1022 pages must be
far less than half of the judged pages."""


class Loss(NamedTuple):
    """Pages that were given but not freed, so far."""

    cause: LossCause
    pages: int


class Gain:
    """Counts one guest's pages."""

    def __init__(self) -> None:
        self._told: set[LossCause] = set()
        self._given_before = 0
        self._freed_before = 0
        self._done = Progress()
        self.fruitless = False
        """Less than half of the pages that the guest gave last were freed."""

    def take(self, done: Progress) -> list[Loss]:
        """Takes the counters of this guest's devices so far, added up.

        Returns:
            The losses of which the cause is seen for the first time.
        """
        self._done = done
        given = done.inflated_pages + done.foreign_pages
        window = given - self._given_before
        if window >= WINDOW_PAGES:
            self.fruitless = 2 * (done.freed_pages - self._freed_before) < window
            self._given_before, self._freed_before = given, done.freed_pages
        new = [loss for loss in self._losses(done) if loss.cause not in self._told]
        self._told.update(loss.cause for loss in new)
        return new

    def start_anew(self) -> None:
        """Starts counting anew, because the balloon is empty or the memory table has changed."""
        self.fruitless = False
        self._given_before = self._done.inflated_pages + self._done.foreign_pages
        self._freed_before = self._done.freed_pages

    def _losses(self, done: Progress) -> list[Loss]:
        losses = [
            Loss(LossCause.NEVER_FREED, done.kept_pages),
            Loss(LossCause.NOT_SHARED, done.foreign_pages),
            Loss(LossCause.REFUSED, done.refused_pages),
        ]
        if self.fruitless:
            known = done.kept_pages + done.refused_pages + done.freed_pages
            losses.append(Loss(LossCause.IN_PIECES, done.inflated_pages - known))
        return [loss for loss in losses if loss.pages > 0]
