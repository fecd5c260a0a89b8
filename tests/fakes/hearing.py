"""A ``Hears`` that only remembers what devices report."""

from balloon_daemon.guests.seam import Stats
from balloon_daemon.tube.messages import Progress


class Hearing:
    """Takes the place of a guest beside the supervisor of its devices.

    Attributes:
        done: the devices' sums, each time that they were reported; the latest last.
        stats: the guest's statistics, and whether they were a device's first.
    """

    def __init__(self) -> None:
        self.done: list[Progress] = []
        self.stats: list[tuple[Stats, bool]] = []

    def progressed(self, done: Progress) -> None:
        self.done.append(done)

    def stats_came(self, stats: Stats, *, first: bool) -> None:
        self.stats.append((stats, first))
