"""A low-memory source whose figures a test sets."""

import math

from balloon_daemon.events import SourceEvent
from balloon_daemon.host.low_memory import LowMemoryStatistics
from balloon_daemon.sizing.decision import NeverLow, Reading
from balloon_daemon.units import MIB


class ToldMemory:
    """A low-memory source.

    Attributes:
        seen: the reading that it gives; None: unknown.
        error: raised by a read in place of a reading.
        reads: how often it was read.
        needs_poll: whether it has to be polled.
        fill_mib_s: how fast its memory can become low.
        fd: readable at a wake-up; None: there is none.
        acknowledged: how many wake-ups were consumed.
        notices: its own events.
        margin_bytes: the margin that was set last.
    """

    name = "told"
    last_error = ""

    def __init__(self) -> None:
        self.fill_mib_s = math.inf
        self.needs_poll = True
        self.fd: int | None = None
        self.acknowledged = 0
        self.notices: list[SourceEvent] = []
        self.seen: Reading | NeverLow | None = Reading(1000, 100)
        self.error: Exception | None = None
        self.reads = 0
        self.margin_bytes: int | None = None

    def set_margin(self, margin_bytes: int | None) -> None:
        self.margin_bytes = margin_bytes
        if isinstance(self.seen, Reading) and margin_bytes is not None:
            self.seen = self.seen._replace(margin_mib=margin_bytes // MIB)

    def read(self) -> Reading | NeverLow | None:
        self.reads += 1
        if self.error is not None:
            raise self.error
        return self.seen

    def wait_fd(self) -> int | None:
        return self.fd

    def acknowledge(self) -> None:
        self.acknowledged += 1

    def take_notice(self) -> SourceEvent | None:
        return self.notices.pop(0) if self.notices else None

    def statistics(self) -> LowMemoryStatistics:
        return LowMemoryStatistics(self.reads)

    def describe(self) -> str:
        return self.name

    def check(self) -> None:
        return None

    def close(self) -> None:
        return None
