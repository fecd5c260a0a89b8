"""Watches the low-memory source for all VMs: at the kernel's wake-ups, and by polling."""

import asyncio
import math
from collections.abc import Callable

from balloon_daemon.events import Publish
from balloon_daemon.host.low_memory import LowMemorySource
from balloon_daemon.sizing.decision import NeverLow, Reading
from balloon_daemon.status import SourceStatus

Take = Callable[[Reading | NeverLow | None], None]
"""Called with each reading of the source; None: its figures are unknown."""

SAFETY_POLL_S = 60.0
"""How often to read even where the kernel wakes us, to notice that it no longer can."""


MOST_POLLS = 5
"""A calm listener's next poll comes after so many poll intervals at most."""


class MemoryWatch:
    """Reads the source on request, and by itself while ``listen`` is in effect.

    Args:
        source: the low-memory source; the watch closes it.
        poll_s: how often to read where the kernel cannot wake us, in seconds.
        publish: takes the events about the source itself: its figures became unknown or known
            again, or it was switched off or on. Low memory is no such event.
        loop: the controller's event loop.
    """

    def __init__(
        self,
        source: LowMemorySource,
        poll_s: float,
        publish: Publish,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._source = source
        self._poll_s = poll_s
        self._publish = publish
        self._loop = loop
        self._take: Take | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._watched_fd: int | None = None
        self._seen: Reading | NeverLow | None = None
        self._seen_at_s: float | None = None

    @property
    def listens(self) -> bool:
        """Whether ``listen`` is in effect."""
        return self._take is not None

    def read(self) -> Reading | NeverLow | None:
        """Reads the source now, and publishes the source's own events."""
        reading = self._source.read()
        while notice := self._source.take_notice():
            self._publish(notice)
        self._seen, self._seen_at_s = reading, self._loop.time()
        return reading

    def look(self) -> Reading | NeverLow | None:
        """Reads the source for a caller that decides nothing by the reading: whether ``listen`` is
        in effect does not change."""
        take = self._take
        try:
            return self.read()
        finally:
            if take is not None:
                self.listen(take)

    def listen(self, take: Take, *, calm: bool = False) -> None:
        """Gives ``take`` each reading that a poll or the kernel's wake-up causes, from now on.

        While listening, call this again after each ``read`` of yours: by then the source may need
        a poll, or have another descriptor to wait for. A poll already scheduled is not postponed.

        Args:
            take: is given the readings.
            calm: the next reading matters only if memory is low then, or nearly. So it may come
                later, as long as nobody can fill up by then what is available now.
        """
        self._take = take
        at_s = self._loop.time() + self._delay_s(calm=calm)
        if self._timer is None or at_s < self._timer.when():
            self._stop_polling()
            self._timer = self._loop.call_at(at_s, self._polled)
        fd = self._source.wait_fd()
        if fd != self._watched_fd:
            self._unwatch()
            if fd is not None:
                self._loop.add_reader(fd, self._woken)
                self._watched_fd = fd

    def _delay_s(self, *, calm: bool) -> float:
        """How long until the next poll."""
        if not self._source.needs_poll:
            return SAFETY_POLL_S
        if not calm or not isinstance(self._seen, Reading):
            return self._poll_s
        spare_mib = self._seen.available_mib - self._seen.margin_mib
        filled_s = spare_mib / self._source.fill_mib_s
        return max(self._poll_s, min(filled_s, MOST_POLLS * self._poll_s))

    def set_margin(self, margin_bytes: int | None) -> None:
        """Uses another margin. While ``listen`` is in effect, also reads the source at once.

        Args:
            margin_bytes: the margin; None: the source's own.
        """
        self._source.set_margin(margin_bytes)
        if self.listens:
            self._look()

    def rest(self) -> None:
        """Ends the reading that ``listen`` began; does nothing where it has ended already."""
        self._take = None
        self._stop_polling()
        self._unwatch()

    def status(self, within_s: float = math.inf) -> SourceStatus:
        """The source's name, last error, counters and last reading.

        Args:
            within_s: reads the source anew where the last reading is older than this.
        """
        age_s = self._age_s()
        if within_s < math.inf and (age_s is None or age_s > within_s):
            self.read()
        source = self._source
        counts = source.statistics()
        return SourceStatus(source.name, source.last_error, *counts, self._seen, self._age_s())

    def _age_s(self) -> float | None:
        return None if self._seen_at_s is None else self._loop.time() - self._seen_at_s

    def close(self) -> None:
        """Stops watching and closes the source."""
        self.rest()
        self._source.close()

    def _polled(self) -> None:
        self._timer = None
        self._look()

    def _woken(self) -> None:
        self._source.acknowledge()
        self._stop_polling()
        self._look()

    def _look(self) -> None:
        take = self._take
        if take is None:
            return
        try:
            take(self.read())
        finally:
            # Without an error ``take`` has called ``listen`` or ``rest``. After an error, perhaps
            # for lack of memory, listen again here.
            if self._take is not None and self._timer is None:
                self.listen(self._take)

    def _stop_polling(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _unwatch(self) -> None:
        if self._watched_fd is not None:
            self._loop.remove_reader(self._watched_fd)
            self._watched_fd = None
