"""Counts a low-memory source's readings, and turns their changes into events.

Events report that the figures have become unknown, and why, or known again, and that the source
was switched off or on. Whoever writes the source's files can cause a change each second, so events
are limited: while the figures stay unknown, the same event is published once a minute at most, and
there are at most ``LINES`` in a minute. An event held back is published later if it is then still
true.
"""

from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import TypeVar

from balloon_daemon.events import (
    SourceEvent,
    SourceKnown,
    SourceOff,
    SourceOn,
    SourceTrouble,
    SourceUnknown,
)
from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.sizing.balloon_policy import NeverLow, Reading

Known = TypeVar("Known", bound=Reading | NeverLow)

LINES, LINES_S = 8, 60.0
"""At most ``LINES`` troubles are published in ``LINES_S`` seconds."""


class LowMemoryStatistics(NamedTuple):
    """Counters of a source since it was made.

    Attributes:
        reads: Readings asked for.
        unknown: How many readings were unknown.
        wakeups: How often the kernel's alarm woke the controller.
    """

    reads: int = 0
    unknown: int = 0
    wakeups: int = 0


class Unknown(NamedTuple):
    """The result of a reading that failed.

    Attributes:
        what: The figure that is missing, for a sentence: ``available memory``, ``the margin``.
        why: What the source found in its place.
    """

    what: str
    why: str


class SourceNotices:
    """What both sources of the host's readings share: counters, and events not yet taken.

    Args:
        clock: Gives seconds since any moment.

    Attributes:
        last_error: Why the last reading was unknown; "" where it was known.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self.last_error = ""
        self._clock = clock
        self._reads = 0
        self._statistics = LowMemoryStatistics()
        self._failed_reads = 0
        # Events that ``take_notice`` returns. The queue is bounded: a caller who never takes the
        # events would otherwise let it grow without end.
        self._notices: deque[SourceEvent] = deque(maxlen=8)
        # The content of the last event, as only a change causes another event. ``_told``: which
        # figure could not be read, and why; None: all were read. ``_told_off``: whether the event
        # said that the source is switched off.
        self._told: Unknown | None = None
        self._told_off = False
        self._troubles: dict[str, str] = {}
        self._said_at: dict[SourceEvent, float] = {}
        self._line_times: deque[float] = deque(maxlen=LINES)

    def take_notice(self) -> SourceEvent | None:
        """The next event to publish: something that began or ended; None when there is none."""
        return self._notices.popleft() if self._notices else None

    def statistics(self) -> LowMemoryStatistics:
        """The counters."""
        return self._statistics._replace(reads=self._reads)

    def note_wakeup(self) -> None:
        """Counts a wake-up."""
        wakeups = self._statistics.wakeups + 1
        self._statistics = self._statistics._replace(wakeups=wakeups)

    def note_reading(self, measured: Known | Unknown) -> Known | None:
        """Counts a reading, queues events about what has changed since the last one, and returns
        the reading; None: unknown."""
        self._reads += 1
        if isinstance(measured, Unknown):
            self._note_unknown(measured)
            return None
        self.last_error = ""
        if isinstance(measured, NeverLow):
            self._note_off(measured)
        else:
            self._note_known(measured)
        self._failed_reads = 0
        return measured

    def note_trouble(self, about: str, line: str) -> None:
        """Notes a trouble that does not make the reading unknown, if it differs from the last one.

        Args:
            about: The subject; each subject's last trouble is remembered separately.
            line: The trouble in one line; "": there is none.
        """
        if line == self._troubles.get(about, ""):
            return
        if not line or self._may_say(SourceTrouble(line)):
            self._troubles[about] = line
            if line:
                self._notices.append(SourceTrouble(line))

    def _note_unknown(self, unknown: Unknown) -> None:
        count = self._statistics.unknown + 1
        self._statistics = self._statistics._replace(unknown=count)
        self._failed_reads += 1
        self.last_error = unknown.why
        event = SourceUnknown(unknown.what, unknown.why)
        if unknown != self._told and self._may_say(event):
            self._notices.append(event)
            self._told = unknown

    def _note_off(self, off: NeverLow) -> None:
        event = SourceOff(off.why)
        if (self._told is not None or not self._told_off) and self._may_say(event):
            self._notices.append(event)
            self._told, self._told_off = None, True

    def _note_known(self, reading: Reading) -> None:
        # SourceKnown and SourceOn need no rate limit of their own. Each follows a SourceUnknown or
        # a SourceOff, and the rate of those two is limited.
        if self._told is not None:
            self._notices.append(SourceKnown(self._told.what, self._failed_reads))
        if self._told_off:
            self._notices.append(SourceOn(reading.margin_mib))
        self._told, self._told_off = None, False
        self._said_at.clear()

    def _may_say(self, event: SourceEvent) -> bool:
        now_s = self._clock()
        if now_s - self._said_at.get(event, -LINES_S) < LINES_S:
            return False
        if len(self._line_times) == LINES and now_s - self._line_times[0] < LINES_S:
            return False
        self._line_times.append(now_s)
        self._said_at = {
            said: at_s for said, at_s in self._said_at.items() if now_s - at_s < LINES_S
        }
        self._said_at[event] = now_s
        return True
