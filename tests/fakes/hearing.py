"""Whoever hears what devices report, and only remembers it."""

from balloon_daemon.guests.seam import Stats
from balloon_daemon.tube.messages import Progress


class Hearing:
    """Stands for a guest beside the supervisor of its devices.

    Attributes:
        done: what the devices had done, each time that it was said; the latest last.
        stats: the guest's statistics, and whether they were a device's first.
    """

    def __init__(self) -> None:
        self.done: list[Progress] = []
        self.stats: list[tuple[Stats, bool]] = []

    def progressed(self, done: Progress) -> None:
        self.done.append(done)

    def stats_came(self, stats: Stats, *, first: bool) -> None:
        self.stats.append((stats, first))
