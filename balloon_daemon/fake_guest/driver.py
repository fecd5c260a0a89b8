"""A virtio-balloon driver that does what Linux's does, buffer by buffer.

Runs in the fake guest's process. It asks what is wanted, sends 256 PFNs, waits for their used
entry, says how large the balloon now is, and asks again. It gives a page up at the moment at which
it makes the buffer available, and takes one back only when the device has used the buffer of the
deflate queue.

Source: virtio 1.3, 5.5; Linux ``drivers/virtio/virtio_balloon.c`` for the order of things.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import numpy as np

from balloon_daemon.errors import ConfigError
from balloon_daemon.fake_guest.page_reporting import (
    REPORT_BLOCK_PAGES,
    PageReport,
)
from balloon_daemon.fake_guest.pages import BUFFER_PFNS, PageStack
from balloon_daemon.fake_guest.pattern import Pages
from balloon_daemon.fake_guest.ram import GuestRam, PageState
from balloon_daemon.fake_guest.ring import DriverQueue, ring_bytes
from balloon_daemon.fake_guest.settings import (
    BUFFER_BYTES,
    SCRATCH_BYTES,
    DriverCounters,
    DriverSettings,
    area_bytes,
)
from balloon_daemon.fake_guest.styles import Ring
from balloon_daemon.units import PAGE_SIZE
from balloon_daemon.virtio.balloon import (
    MAX_QUEUES,
    STAT_ENTRY,
    BalloonFeature,
    BalloonQueue,
    StatTag,
    queue_numbers,
)

# Linux's order: first what vmstat counts, then sizes. 6.1 sends ten tags, 7.2 all sixteen.
_TAGS_10 = [0, 1, 2, 3, 8, 9, 4, 5, 6, 7]
_TAGS_16 = [0, 1, 2, 3, 8, 9, 10, 11, 12, 13, 14, 15, 4, 5, 6, 7]


class Transport(Protocol):
    """What a driver asks of its virtual machine monitor."""

    def read_config(self, offset: int, length: int) -> bytes: ...

    def write_config(self, offset: int, content: bytes) -> None: ...

    def kick(self, index: int) -> None: ...


class Direction(Enum):
    """Which way the balloon is going; the values are the names of the events."""

    INFLATE = "inflated"
    DEFLATE = "deflated"


@dataclass(slots=True)
class _Buffer:
    direction: Direction
    pages: Pages
    slot: int


class BalloonDriver:
    """The guest's end of the balloon.

    Args:
        ram: the guest's memory.
        area: guest-physical address of ``area_bytes`` bytes, page-aligned, set aside for it.
        free: pages that it may put into the balloon.
        transport: the machine that it runs in.
        settings: how it behaves.
        on_event: told of ``inflated``, ``deflated``, ``out_of_puff`` and ``reported``.
    """

    def __init__(
        self,
        ram: GuestRam,
        area: int,
        free: PageStack,
        transport: Transport,
        settings: DriverSettings,
        on_event: Callable[[str, dict[str, int]], None],
    ) -> None:
        self.ram = ram
        self.free = free
        self.settings = settings
        self.counters = DriverCounters()
        self.balloon = PageStack(np.empty(0, np.int64), ram.num_pages)
        self.queues: dict[BalloonQueue, DriverQueue] = {}
        self.num_pages = 0
        """What the device wanted when last asked, in 4 KiB pages."""
        self.wants_retry = False
        """The guest had nothing to give: ask again later, as Linux does after 200 ms."""
        self._area = area
        self._buffers_at = area + ring_bytes(settings.queue_size) * MAX_QUEUES
        self.transport = transport
        self._on_event = on_event
        self.scratch = area + area_bytes(settings) - SCRATCH_BYTES
        """A page of the driver's that it does not use: room for a test's own buffers."""
        self._had_pattern = np.zeros(ram.num_pages, np.bool_)
        self._report: PageReport | None = None
        self._leaving = False
        self._look_again = False
        self._keeps_total = False
        self._plugged_bytes = 0
        self._reset_queues()

    def _reset_queues(self) -> None:
        self._slots = list(range(self.settings.in_flight))
        self._sent: dict[tuple[BalloonQueue, int], _Buffer] = {}
        self._on_the_way = 0
        self.queues = {}

    # -- life -----------------------------------------------------------------------------

    @property
    def actual(self) -> int:
        """Pages in the balloon, as the driver tells the device: those with a used entry."""
        return len(self.balloon)

    @property
    def idle(self) -> bool:
        """Nothing on the way to the device but the statistics buffer that it keeps."""
        return not self._sent and self._report is None

    def find_queues(self, acknowledged: int) -> list[Ring]:
        """Sets up empty rings and fills the first statistics buffer.

        Args:
            acknowledged: the features that device and driver agreed on.

        Returns:
            The rings for the machine to hand to the device.
        """
        self._reset_queues()
        # Linux leaves the balloon in its total with DEFLATE_ON_OOM, and takes it out without.
        self._keeps_total = bool(acknowledged & BalloonFeature.DEFLATE_ON_OOM)
        size = self.settings.queue_size
        for index, queue in queue_numbers(acknowledged).items():
            ring = DriverQueue(index, size, self.ram.memory, self._area + index * ring_bytes(size))
            ring.suppress_interrupts(suppress=not self.settings.interrupts)
            self.queues[queue] = ring
        # Linux primes it before DRIVER_OK: a device must look into the ring without a kick.
        if BalloonQueue.STATSQ in self.queues:
            self._send_stats()
        return [ring.ring for ring in self.queues.values()]

    def ready(self) -> None:
        """DRIVER_OK: looks at the target that may be waiting in the config space."""
        self._leaving = False
        self._advance()

    def leave(self) -> None:
        """Unbinding: empties the balloon whatever the device wants; done when ``actual`` is 0."""
        self._leaving = True
        self._advance()

    def reset(self) -> None:
        """The machine was reset: no queue, no balloon; what was in it is plain memory again."""
        for buffer in self._sent.values():
            self._give_back(buffer.pages[::-1])
        self._give_back(self.balloon.take(len(self.balloon)))
        if self._report is not None:
            self._report.finish()
        self._report = None
        self.wants_retry = False
        self._reset_queues()

    def memory_plugged(self, size_bytes: int) -> None:
        """Memory was plugged in, and the guest uses it (or out: negative)."""
        self._plugged_bytes += size_bytes

    # -- what happens ---------------------------------------------------------------------

    def config_changed(self) -> None:
        """A config interrupt."""
        self.counters.config_interrupts += 1
        self._advance()

    def retry(self) -> None:
        """The pause after "out of puff" is over."""
        if self.wants_retry:
            self._advance()

    def used(self, queue: BalloonQueue) -> None:
        """An interrupt of one queue, or a look at it without one."""
        heads = [head for head, _ in self.queues[queue].collect()]
        if not heads:
            return
        match queue:
            case BalloonQueue.INFLATEQ | BalloonQueue.DEFLATEQ:
                # A chain that a test put there itself is that test's business.
                ours = [self._sent.pop((queue, h)) for h in heads if (queue, h) in self._sent]
                if ours:
                    self._finish(ours)
            case BalloonQueue.STATSQ:
                self._send_stats()
            case BalloonQueue.REPORTING_VQ:
                self._finish_report()
            case BalloonQueue.FREE_PAGE_VQ:
                raise RuntimeError("a used buffer in a queue that we never fill")

    def poll_used(self) -> None:
        """Looks into all queues; for a driver that suppresses interrupts."""
        for queue in list(self.queues):
            self.used(queue)

    # -- inflate and deflate --------------------------------------------------------------

    def _advance(self) -> None:
        self.wants_retry = False
        # Linux queues its work once more when an interrupt comes while the work is waiting.
        self._look_again = True
        if not self.queues or not self._slots:
            return
        self._look_again = False
        self.num_pages = self._wanted()
        while self._slots:
            missing = self.num_pages - self.actual - self._on_the_way
            if missing == 0:
                return
            direction = Direction.INFLATE if missing > 0 else Direction.DEFLATE
            # Never both ways at once: a page could be in two buffers.
            if any(buffer.direction is not direction for buffer in self._sent.values()):
                return
            source = self.free if direction is Direction.INFLATE else self.balloon
            pages = source.take(min(BUFFER_PFNS, abs(missing)))
            if len(pages) == 0:
                if not self._sent:
                    self._out_of_puff()
                return
            self._send(direction, pages)

    def _wanted(self) -> int:
        if self._leaving:
            return 0
        return int.from_bytes(self.transport.read_config(0, 4), "little")

    def _out_of_puff(self) -> None:
        if self.counters.out_of_puff == 0:
            self._on_event("out_of_puff", self._figures())
        self.counters.out_of_puff += 1
        self.wants_retry = True

    def _send(self, direction: Direction, pages: Pages) -> None:
        if direction is Direction.INFLATE:
            queue = BalloonQueue.INFLATEQ
            self.counters.inflate_buffers += 1
            self._on_the_way += len(pages)
            self._had_pattern[pages] = self.ram.state[pages] == PageState.PATTERN
            self.ram.state[pages] = PageState.BALLOON
        else:
            queue = BalloonQueue.DEFLATEQ
            self.counters.deflate_buffers += 1
        slot = self._slots.pop()
        addr = self._buffers_at + slot * BUFFER_BYTES
        content = self.ram.numbers.pfns(pages).tobytes()
        self.write(addr, content)
        cuts = [len(content) * part // self.settings.parts for part in range(self.settings.parts)]
        parts = [
            (addr + start, end - start)
            for start, end in zip(cuts, [*cuts[1:], len(content)], strict=True)
            if end > start
        ]
        head = self.queues[queue].add(parts)
        self._sent[queue, head] = _Buffer(direction, pages, slot)
        self._kick(queue)

    def _finish(self, buffers: Sequence[_Buffer]) -> None:
        for buffer in buffers:
            self._slots.append(buffer.slot)
            if buffer.direction is Direction.INFLATE:
                self._on_the_way -= len(buffer.pages)
                self.balloon.give(buffer.pages)
            else:
                self._give_back(buffer.pages)
        # Once for all that came together; with one on its way, as in Linux, once for each.
        self.transport.write_config(4, self.actual.to_bytes(4, "little"))
        if self._look_again or self._sent or self.actual != self.num_pages:
            self._advance()
        if self.actual == self.num_pages and not self._sent:
            self._on_event(buffers[0].direction.value, self._figures())

    def _give_back(self, pages: Pages) -> None:
        self.ram.state[pages] = PageState.GIVEN
        self.free.give(pages)
        if self.settings.refill:
            self.ram.touch(pages[self._had_pattern[pages]])

    def touch_free(self, size_bytes: int) -> int:
        """Touches free memory, next to be given up first, and leaves it free: page cache.

        Returns:
            The bytes touched; fewer than asked for when there is no more untouched memory.
        """
        pages = self.free.next()
        pages = pages[self.ram.state[pages] != PageState.PATTERN][: size_bytes // PAGE_SIZE]
        self.ram.touch(pages)
        return len(pages) * PAGE_SIZE

    # -- statistics -----------------------------------------------------------------------

    def _send_stats(self) -> None:
        self.counters.stats_buffers += 1
        tags = _TAGS_10 if self.settings.stat_tags == 10 else _TAGS_16
        values = self.statistics()
        content = b"".join(STAT_ENTRY.pack(tag, values[StatTag(tag)]) for tag in tags)
        addr = self._buffers_at + BUFFER_BYTES * self.settings.in_flight
        self.write(addr, content)
        self.queues[BalloonQueue.STATSQ].add([(addr, len(content))])
        self._kick(BalloonQueue.STATSQ)

    def statistics(self) -> dict[StatTag, int]:
        """What this guest reports: bytes for memory, small counts for the rest."""
        patterned = self.ram.count(PageState.PATTERN)
        in_free = self.ram.state[self.free.next()] == PageState.PATTERN
        cached = int(np.count_nonzero(in_free))
        values = {tag: 100 + tag for tag in StatTag}
        usable = self.ram.num_pages - self.actual
        total = self.ram.num_pages if self._keeps_total else usable
        values[StatTag.MEMTOT] = total * PAGE_SIZE + self._plugged_bytes
        values[StatTag.MEMFREE] = (usable - patterned) * PAGE_SIZE
        values[StatTag.AVAIL] = len(self.free) * PAGE_SIZE
        values[StatTag.CACHES] = cached * PAGE_SIZE
        return values

    # -- free page reporting --------------------------------------------------------------

    def report_free_pages(self, block_pages: int = REPORT_BLOCK_PAGES) -> int:
        """Reports every aligned free block that holds memory, 32 in a chain.

        Returns:
            The blocks that will be reported; ``reported`` follows when the last was used.

        Raises:
            ConfigError: no reporting queue, or a report is under way.
        """
        if BalloonQueue.REPORTING_VQ not in self.queues:
            raise ConfigError("free page reporting was not negotiated")
        if self._report is not None:
            raise ConfigError("a report is under way")
        self._report = PageReport(self.ram, self.free, block_pages, self.settings.queue_size)
        blocks = self._report.blocks_left
        self._send_report()
        return blocks

    def _send_report(self) -> None:
        assert self._report is not None
        chain = self._report.next_chain()
        if not chain:
            self._on_event("reported", {"bytes": self._report.sent_bytes} | self._figures())
            self._report = None
            return
        self.counters.report_buffers += 1
        self.counters.reported_bytes += sum(length for _, length in chain)
        self.queues[BalloonQueue.REPORTING_VQ].add([], chain)
        self._kick(BalloonQueue.REPORTING_VQ)

    def _finish_report(self) -> None:
        assert self._report is not None
        self._report.finish()
        self._send_report()

    # -- small things ---------------------------------------------------------------------

    def _kick(self, queue: BalloonQueue) -> None:
        ring = self.queues[queue]
        if ring.wants_kick():
            self.counters.kicks += 1
            self.transport.kick(ring.ring.index)
        else:
            self.counters.kicks_suppressed += 1

    def write(self, addr: int, content: bytes) -> None:
        """Writes into guest memory, for whoever makes chains of his own; see ``scratch``."""
        view = self.ram.memory.view(addr, len(content))
        assert view is not None
        view[:] = content

    def _figures(self) -> dict[str, int]:
        return {"actual": self.actual, "num_pages": self.num_pages}
