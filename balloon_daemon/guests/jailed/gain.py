"""What the host got for what a guest gave: a balloon is a success only where pages were freed.

Pure. A device counts what it did (``Progress``); this finds the pages that came to nothing, by
cause, and says when giving more would only cost the guest.
"""

from typing import NamedTuple

from balloon_daemon.events import LossCause
from balloon_daemon.tube.messages import Progress

WINDOW_PAGES = 4096
"""Pages (16 MiB) that the guest has to give before it can be said that they came to nothing. A run
of pages begins and ends inside a huge page of 2 MiB, which goes only as a whole: up to 1022 pages
of a run are not freed yet though all is well, and those must stay far below half."""


class Loss(NamedTuple):
    """Pages that came to nothing, so far."""

    cause: LossCause
    pages: int


class Gain:
    """The account of one guest."""

    def __init__(self) -> None:
        self._told: set[LossCause] = set()
        self._given_before = 0
        self._freed_before = 0
        self._done = Progress()
        self.fruitless = False
        """Of the last pages that the guest gave, less than half were freed."""

    def take(self, done: Progress) -> list[Loss]:
        """Takes what all devices of this guest have done so far.

        Returns:
            The causes that show for the first time.
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

    def forgive(self) -> None:
        """The balloon is empty, or the memory another: it may be tried again."""
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
