"""The settings of a fake guest's driver, and its counters."""

from dataclasses import dataclass

from balloon_daemon.errors import ConfigError
from balloon_daemon.fake_guest.pages import BUFFER_PFNS
from balloon_daemon.fake_guest.ring import ring_bytes
from balloon_daemon.virtio.balloon import (
    MAX_QUEUES,
    OFFERED_FEATURES,
    STAT_ENTRY,
    BalloonFeature,
    StatTag,
)

BUFFER_BYTES = 4 * BUFFER_PFNS
SCRATCH_BYTES = 4096
_STATS_BYTES = STAT_ENTRY.size * len(StatTag)


@dataclass(frozen=True, slots=True)
class DriverSettings:
    """The behaviour of this driver in which drivers may differ.

    Attributes:
        features: the offered features that it acknowledges.
        queue_size: entries of every ring, a power of two.
        in_flight: PFN buffers sent before it waits; Linux sends one.
        parts: descriptors of each PFN buffer; Linux uses one.
        stat_tags: statistics in a buffer, 10 or 16.
        interrupts: False: it suppresses the device's calls, and polls.
        poison_val: what its kernel fills free pages with, for PAGE_POISON; None: its kernel does
            not fill them, and it does not acknowledge that feature.
        refill: True: pages that leave the balloon, and were touched before, are touched again.
    """

    features: int = OFFERED_FEATURES
    queue_size: int = 128
    in_flight: int = 1
    parts: int = 1
    stat_tags: int = 10
    interrupts: bool = True
    refill: bool = False
    poison_val: int | None = None

    def __post_init__(self) -> None:
        size = self.queue_size
        if not 1 <= size <= 32768 or size & (size - 1):
            raise ConfigError(f"queue size {size}: allowed are powers of two up to 32768")
        if not 1 <= self.parts <= min(size, BUFFER_BYTES):
            raise ConfigError(f"{self.parts} descriptors a buffer in a queue of {size}")
        if self.in_flight < 1 or self.in_flight * self.parts > size:
            raise ConfigError(f"{self.in_flight} buffers in flight in a queue of {size}")
        if self.stat_tags not in (10, 16):
            raise ConfigError(f"{self.stat_tags} statistics: kernels send 10 or 16")
        if not 0 <= (self.poison_val or 0) < 1 << 32:
            raise ConfigError(f"poison_val {self.poison_val} is no u32")

    def acknowledged(self, offered: int) -> int:
        """The features of a device that the driver acknowledges, as Linux's does: without
        REPORTING where its kernel fills free pages and cannot say so."""
        # Plain ints: "~" of an IntFlag drops the bits for which its class has no name.
        features = int(offered & self.features)
        poison, reporting = int(BalloonFeature.PAGE_POISON), int(BalloonFeature.REPORTING)
        if self.poison_val is None:
            return features & ~poison
        return features if features & poison else features & ~reporting


@dataclass(slots=True)
class DriverCounters:
    """Counters since the driver was made."""

    inflate_buffers: int = 0
    deflate_buffers: int = 0
    stats_buffers: int = 0
    report_buffers: int = 0
    reported_bytes: int = 0
    kicks: int = 0
    kicks_suppressed: int = 0
    out_of_puff: int = 0
    config_interrupts: int = 0


def area_bytes(settings: DriverSettings) -> int:
    """The size of guest memory for the driver's rings and buffers."""
    buffers = BUFFER_BYTES * settings.in_flight + _STATS_BYTES
    whole = -(-buffers // SCRATCH_BYTES) * SCRATCH_BYTES
    return ring_bytes(settings.queue_size) * MAX_QUEUES + whole + SCRATCH_BYTES
