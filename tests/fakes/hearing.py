"""Whoever hears what devices report, and only remembers it."""

from balloon_daemon.tube.messages import Progress


class Hearing:
    """Stands for a guest beside the supervisor of its devices.

    Attributes:
        done: what the devices had done, each time that it was said; the latest last.
        stats: the guest's statistics by tag, and whether they were a device's first.
    """

    def __init__(self) -> None:
        self.done: list[Progress] = []
        self.stats: list[tuple[dict[int, int], bool]] = []

    def progressed(self, done: Progress) -> None:
        self.done.append(done)

    def stats_came(self, stats: dict[int, int], *, first: bool) -> None:
        self.stats.append((stats, first))
