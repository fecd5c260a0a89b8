"""Reports a balloon's size while a driver writes it with each buffer.

A driver writes ``actual`` once for each MiB, hundreds of times a second, and a report takes more
of the controller's time than the answer to the write. A VM of the profile seed is decided by the
size that its balloon has when the next step comes, seconds later. So while its balloon is on the
way to its target it is reported once in ``EVERY_S``. Everything else is reported at once: the
target itself, a size beyond it, and a balloon that turns back. VMs of other profiles are decided
by each movement (``sizing/drift.py``, ``sizing/stall.py``), so each size of theirs is reported,
and so is each size of a balloon whose whole memory is given back.
"""

import asyncio
from collections.abc import Callable

from balloon_daemon.virtio.balloon import BalloonConfig

EVERY_S = 0.05
"""A healthy guest gives some 25 MiB in that time. A size in the store may be as old again
(``SAVE_SOON_S``)."""


class ActualReports:
    """Decides when one balloon's size is reported.

    Args:
        config: has ``actual`` and ``num_pages``.
        report: reports a size, in 4 KiB pages.
        loop: the controller's event loop.

    Attributes:
        each: whether each size is reported.
    """

    def __init__(
        self,
        config: BalloonConfig,
        report: Callable[[int], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._config = config
        self._report = report
        self._loop = loop
        self._written = self._reported = int(config.actual)
        """The last size, and the last one that was reported."""
        self._rest: asyncio.TimerHandle | None = None
        self.each = False

    def written(self) -> None:
        """Takes note of a write to ``actual``."""
        config = self._config
        actual, target, before = config.actual, config.num_pages, self._written
        self._written = actual
        if self._rest is not None:
            if (before <= actual < target or target < actual <= before) and not self.each:
                return  # ``_rested`` reports it, or the next call does.
            if before != self._reported:
                self._report(before)
        elif not self.each:
            self._rest = self._loop.call_later(EVERY_S, self._rested)
        self._reported = actual
        self._report(actual)

    def _rested(self) -> None:
        self._rest = None
        if self._written != self._reported:
            self.written()

    def end(self) -> None:
        """Reports nothing more."""
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None
