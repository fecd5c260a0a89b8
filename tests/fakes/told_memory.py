"""A low-memory source that says what a test tells it."""

from balloon_daemon.events import SourceEvent
from balloon_daemon.host.low_memory import LowMemoryStatistics
from balloon_daemon.sizing.decision import NeverLow, Reading


class ToldMemory:
    """A source.

    Attributes:
        seen: what it says; None: unknown.
        error: what a read raises instead.
        reads: how often it was read.
        needs_poll: whether nothing wakes whoever waits for it.
        fd: what wakes whoever waits for it; None: nothing.
        acknowledged: how many wake-ups were consumed.
        notices: what it has to say of itself.
    """

    name = "told"
    last_error = ""

    def __init__(self) -> None:
        self.needs_poll = True
        self.fd: int | None = None
        self.acknowledged = 0
        self.notices: list[SourceEvent] = []
        self.seen: Reading | NeverLow | None = Reading(1000, 100)
        self.error: Exception | None = None
        self.reads = 0

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
