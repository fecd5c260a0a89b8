"""A low-memory source's memory of its readings: counted, and their changes kept as events.

Each change is an event: figures that are unknown, why, and known again; a source that is switched
off and on again. Whoever writes the files can make a change each second, so that events are
limited: within one trouble the same one is not said again within a minute, and all in all there
are at most ``LINES`` in that time. What was held back is said later, where it still is so.
"""

from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import NamedTuple, TypeVar

from balloon_daemon.events import (
    SourceEvent,
    SourceKnown,
    SourceOff,
    SourceOn,
    SourceTrouble,
    SourceUnknown,
)
from balloon_daemon.sizing.balloon_policy import NeverLow, Reading

Known = TypeVar("Known", bound=Reading | NeverLow)

LINES, LINES_S = 8, 60.0
"""At most so many troubles are said within so many seconds."""


class LowMemoryStatistics(NamedTuple):
    """Counters of a source since it was made.

    Attributes:
        reads: Readings asked for.
        unknown: How many of them gave nothing.
        wakeups: How often the kernel woke us.
    """

    reads: int = 0
    unknown: int = 0
    wakeups: int = 0


class Unknown(NamedTuple):
    """A reading that gave nothing.

    Attributes:
        what: The figure that is missing, for a sentence: ``available memory``, ``the margin``.
        why: What was found in its place.
    """

    what: str
    why: str


class SourceNotices:
    """What both sources count and have to say of themselves.

    Args:
        clock: Gives seconds since any moment.

    Attributes:
        last_error: Why the last reading gave nothing; "" if it did give something.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self.last_error = ""
        self._clock = clock
        self._statistics = LowMemoryStatistics()
        self._failed_reads = 0
        # Whoever never asks for notices must not pay for them with memory.
        self._notices: deque[SourceEvent] = deque(maxlen=8)
        # What the log's reader believes.
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
        return self._statistics

    def note_wakeup(self) -> None:
        """Counts a wake-up."""
        wakeups = self._statistics.wakeups + 1
        self._statistics = self._statistics._replace(wakeups=wakeups)

    def note_reading(self, measured: Known | Unknown) -> Known | None:
        """Counts a reading, notes what has changed with it, and gives it; None: unknown."""
        reads = self._statistics.reads + 1
        self._statistics = self._statistics._replace(reads=reads)
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
        """Notes a trouble beside a reading, where it is another than the last one.

        Args:
            about: What has it; the troubles of each are told apart.
            line: What to say of it; "": there is none.
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
        # Each of these ends what was allowed to be said, so that they need no limit of their own.
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
