"""What must stay flat: resident memory and file descriptors of a process over time."""

import time
from dataclasses import dataclass, field
from statistics import median

import psutil

from tests.harness.invariants import open_fds

EVERY_S = 1.0
"""How often to look in a soak of minutes."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at a process.

    Attributes:
        at_s: seconds since the soak began.
        life: which one it was, counted from 0: a restarted controller begins anew.
        rss_bytes: resident memory.
        fds: open file descriptors.
    """

    at_s: float
    life: int
    rss_bytes: int
    fds: int


@dataclass(slots=True)
class Gauge:
    """The samples of one process.

    Attributes:
        name: for the picture.
        began: ``time.monotonic()`` when the soak began.
        every_s: seconds between two samples.
    """

    name: str
    began: float
    every_s: float = EVERY_S
    samples: list[Sample] = field(default_factory=list)
    _next_at: float = 0.0

    def look(self, pid: int, life: int, *, at_once: bool = False) -> None:
        """Takes a sample where one is due, or at once."""
        now = time.monotonic()
        if now < self._next_at and not at_once:
            return
        self._next_at = now + self.every_s
        try:
            rss = psutil.Process(pid).memory_info().rss
            sample = Sample(now - self.began, life, rss, open_fds(pid))
        except (OSError, psutil.Error):
            return  # It was just killed; the next look finds another.
        self.samples.append(sample)

    def growth(self) -> tuple[int, int]:
        """How much memory (bytes) and how many descriptors were gained, the start left out.

        The median of the last quarter against that of the second: guests come and go, so single
        samples lie. The first quarter is the time in which caches fill.
        Of fewer than four samples it is the last against the first.
        """
        quarter = len(self.samples) // 4
        early, late = self.samples[quarter : 2 * quarter], self.samples[-quarter:]
        if quarter == 0:
            early, late = self.samples[:1], self.samples[-1:]
        if not early:
            return 0, 0
        rss = median(s.rss_bytes for s in late) - median(s.rss_bytes for s in early)
        fds = median(s.fds for s in late) - median(s.fds for s in early)
        return int(rss), int(fds)
