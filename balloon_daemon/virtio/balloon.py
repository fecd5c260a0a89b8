"""The traditional memory balloon device's own numbers: features, queues, config space, statistics.

Pure. Source: virtio 1.3, 5.5 "Traditional Memory Balloon Device"; names as in
``linux/virtio_balloon.h``.
"""

import struct
from collections.abc import Iterator
from enum import Enum, IntEnum, IntFlag

from balloon_daemon.units import PAGE_SIZE, NumPages

NO_PAGES = NumPages(0)


class BalloonFeature(IntFlag):
    """Feature bits that a balloon device can meet (virtio 1.3, 5.5.3 and section 6)."""

    MUST_TELL_HOST = 1 << 0
    STATS_VQ = 1 << 1
    DEFLATE_ON_OOM = 1 << 2
    FREE_PAGE_HINT = 1 << 3
    PAGE_POISON = 1 << 4
    REPORTING = 1 << 5
    INDIRECT_DESC = 1 << 28
    EVENT_IDX = 1 << 29
    VERSION_1 = 1 << 32


OFFERED_FEATURES = (
    BalloonFeature.VERSION_1
    | BalloonFeature.MUST_TELL_HOST
    | BalloonFeature.STATS_VQ
    | BalloonFeature.DEFLATE_ON_OOM
    | BalloonFeature.PAGE_POISON
    | BalloonFeature.REPORTING
)
"""EVENT_IDX, indirect descriptors and hinting are not implemented and therefore not offered.
PAGE_POISON is offered because Linux's driver takes REPORTING back without it where the guest's
kernel initializes freed pages (``init_on_free=1``)."""


class BalloonQueue(Enum):
    """The virtqueues, by the specification's names (virtio 1.3, 5.5.2)."""

    INFLATEQ = "inflateq"
    DEFLATEQ = "deflateq"
    STATSQ = "statsq"
    FREE_PAGE_VQ = "free_page_vq"
    REPORTING_VQ = "reporting_vq"


MAX_QUEUES = len(BalloonQueue)

_OPTIONAL_QUEUES = (
    (BalloonFeature.STATS_VQ, BalloonQueue.STATSQ),
    (BalloonFeature.FREE_PAGE_HINT, BalloonQueue.FREE_PAGE_VQ),
    (BalloonFeature.REPORTING, BalloonQueue.REPORTING_VQ),
)


def queue_numbers(acknowledged: int) -> dict[int, BalloonQueue]:
    """The virtqueue of each queue index.

    Indices have no gaps: a queue whose feature was not acknowledged takes none, so the
    reporting_vq is queue 2 without statistics and queue 3 with them. Linux and QEMU both count
    this way.

    Args:
        acknowledged: the feature bits that the driver accepted (SET_FEATURES).

    Returns:
        Index to queue, from 0 without gaps.
    """
    queues = [BalloonQueue.INFLATEQ, BalloonQueue.DEFLATEQ]
    queues += [queue for bit, queue in _OPTIONAL_QUEUES if acknowledged & bit]
    return dict(enumerate(queues))


POISON_VAL_OFFSET = 12
"""Where ``poison_val`` begins in the config space."""


class BalloonConfig:
    """The device's configuration space (virtio 1.3, 5.5.4); the device writes ``num_pages`` only.

    Attributes:
        num_pages: 4 KiB pages that the device wants in the balloon.
        actual: 4 KiB pages that the driver says are in it.
        poison_val: the u32 with which the guest fills free pages, as the driver has written it;
            None: this driver has not written it, and it reads as 0.
    """

    __slots__ = ("actual", "num_pages", "poison_val")

    # The four fields are num_pages, actual, free_page_hint_cmd_id and poison_val. The third
    # belongs to a feature that is not offered, and reads as zero.
    _LAYOUT = struct.Struct("<IIII")
    SIZE = _LAYOUT.size

    def __init__(
        self,
        num_pages: NumPages = NO_PAGES,
        actual: NumPages = NO_PAGES,
        poison_val: int | None = None,
    ) -> None:
        self.num_pages = num_pages
        self.actual = actual
        self.poison_val = poison_val

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, BalloonConfig):
            return NotImplemented
        ours, theirs = (self.num_pages, self.actual), (other.num_pages, other.actual)
        return ours == theirs and self.poison_val == other.poison_val

    def read(self, offset: int, length: int) -> bytes:
        """Reads ``length`` bytes from ``offset``; bytes beyond the config space read as 0.

        A VMM may have been configured with a larger space than the device has (QEMU's
        ``config_size=``), and reads all of it whatever its guest asks for.
        """
        space = self._LAYOUT.pack(self.num_pages, self.actual, 0, self.poison_val or 0)
        return space[offset : offset + length].ljust(length, b"\0")

    def write_poison_val(self, offset: int, content: bytes) -> bool:
        """Handles a driver's write, of which only ``poison_val`` (bytes 12–15) is kept.

        Returns:
            Whether any of ``poison_val`` was written.
        """
        if not content or offset >= self.SIZE or offset + len(content) <= POISON_VAL_OFFSET:
            return False
        space = bytearray(self.read(0, self.SIZE))
        space[offset : offset + len(content)] = content
        self.poison_val = self._LAYOUT.unpack_from(space)[3]
        return True

    def write(self, offset: int, content: bytes) -> bool:
        """Handles a driver's write, of which only ``actual`` (bytes 4–7) is kept.

        QEMU always writes the whole space, including its own cached ``num_pages``, which must not
        overwrite the device's. Bytes beyond the config space are dropped.

        Returns:
            Whether any of ``actual`` was written.
        """
        if not offset and len(content) == self.SIZE:
            # The quick way for a write of the whole space, which QEMU sends for each buffer.
            self.actual = NumPages(self._LAYOUT.unpack(content)[1])
            return True
        if not content or offset >= 8 or offset + len(content) <= 4:
            return False
        space = bytearray(self._LAYOUT.pack(self.num_pages, self.actual, 0, 0))
        space[offset : offset + len(content)] = content
        self.actual = NumPages(self._LAYOUT.unpack_from(space)[1])
        return True


def pages_of(size_bytes: int) -> NumPages:
    """The number of whole 4 KiB pages in a size, limited to the u32 of ``num_pages``."""
    return NumPages(min(size_bytes // PAGE_SIZE, 0xFFFF_FFFF))


class StatTag(IntEnum):
    """Tags of the statistics that a driver reports (virtio 1.3, 5.5.6.4; linux/virtio_balloon.h).

    The values are bytes, except the faults, allocations and scans, which are counts.
    """

    SWAP_IN = 0
    SWAP_OUT = 1
    MAJFLT = 2
    MINFLT = 3
    MEMFREE = 4
    MEMTOT = 5
    AVAIL = 6
    CACHES = 7
    HTLB_PGALLOC = 8
    HTLB_PGFAIL = 9
    OOM_KILL = 10
    ALLOC_STALL = 11
    ASYNC_SCAN = 12
    DIRECT_SCAN = 13
    ASYNC_RECLAIM = 14
    DIRECT_RECLAIM = 15


STAT_ENTRY = struct.Struct("<HQ")
"""One statistic: u16 tag, u64 value, packed (10 bytes)."""

MAX_STATS = 64
"""Entries that are read from one buffer; Linux 7.2 sends 16."""


def decode_stats(buffer: bytes) -> Iterator[tuple[int, int]]:
    """Yields (tag, value) of each whole entry, unknown tags too; ignores an incomplete last
    one."""
    whole = min(len(buffer) // STAT_ENTRY.size, MAX_STATS) * STAT_ENTRY.size
    yield from STAT_ENTRY.iter_unpack(buffer[:whole])
