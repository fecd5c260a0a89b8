"""A virtio-balloon driver that does what Linux's does, buffer by buffer.

Runs in the fake guest's process. It reads the target, sends 256 PFNs, waits for their used entry,
writes the balloon's size, and reads the target again. It gives a page up when it makes the buffer
available, and takes a page back only when the device has used the deflateq's buffer.

Source: virtio 1.3, 5.5; Linux ``drivers/virtio/virtio_balloon.c`` for the order of things.
"""

from collections.abc import Callable, Sequence
from typing import assert_never

from balloon_daemon.fake_guest.balloon_pages import BalloonPages
from balloon_daemon.fake_guest.guest_statistics import GuestStatistics
from balloon_daemon.fake_guest.in_flight import Direction, InFlight, SentBuffer
from balloon_daemon.fake_guest.page_reporting import PageReporting
from balloon_daemon.fake_guest.pages import BUFFER_PFNS, PageStack
from balloon_daemon.fake_guest.pattern import Pages
from balloon_daemon.fake_guest.ram import GuestRam
from balloon_daemon.fake_guest.rings import Rings, Transport
from balloon_daemon.fake_guest.settings import DriverCounters, DriverSettings
from balloon_daemon.fake_guest.styles import Ring
from balloon_daemon.virtio.balloon import POISON_VAL_OFFSET, BalloonFeature, BalloonQueue


class BalloonDriver:
    """The guest's balloon driver.

    Args:
        ram: the guest's memory.
        area: guest-physical address of ``area_bytes`` bytes, page-aligned, set aside for it.
        free: pages that it may put into the balloon.
        transport: the VMM that it runs in.
        settings: how it behaves.
        on_event: called with ``inflated``, ``deflated``, ``out_of_puff`` and ``reported``.
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
        self.settings = settings
        self.counters = DriverCounters()
        self.rings = Rings(ram, area, transport, settings, self.counters)
        self.pages = BalloonPages(ram, free, refill=settings.refill)
        self.statistics = GuestStatistics(ram, self.pages, settings.stat_tags)
        self.reporting = PageReporting(
            ram,
            free,
            self.rings,
            self.counters,
            lambda size: on_event("reported", {"bytes": size} | self._figures()),
            settings.poison_val,
        )
        self.num_pages = 0
        """The target when last read, in 4 KiB pages."""
        self.wants_retry = False
        """The guest had no page to give: try again later, as Linux does after 200 ms."""
        self._on_event = on_event
        self._leaving = False
        self._look_again = False
        self._in_flight = InFlight(settings.in_flight)

    @property
    def actual(self) -> int:
        """Pages in the balloon, as the driver tells the device: those with a used entry."""
        return len(self.pages.balloon)

    @property
    def idle(self) -> bool:
        """Whether nothing is on its way to the device but the statistics buffer that it holds."""
        return not self._in_flight.buffers and self.reporting.idle

    def find_queues(self, acknowledged: int) -> list[Ring]:
        """Sets up empty rings, fills the first statistics buffer and writes ``poison_val``.

        Args:
            acknowledged: the features that device and driver agreed on.

        Returns:
            The rings for the machine to hand to the device.
        """
        self._in_flight = InFlight(self.settings.in_flight)
        self.statistics.keeps_total = bool(acknowledged & BalloonFeature.DEFLATE_ON_OOM)
        rings = self.rings.set_up(acknowledged)
        # Put a first buffer into the statsq before DRIVER_OK, as Linux does. A device finds this
        # buffer only if it looks at the ring without a kick.
        if BalloonQueue.STATSQ in self.rings.queues:
            self._send_stats()
        if acknowledged & BalloonFeature.PAGE_POISON:
            poison_val = self.settings.poison_val or 0
            content = poison_val.to_bytes(4, "little")
            self.rings.transport.write_config(POISON_VAL_OFFSET, content)
        return rings

    def ready(self) -> None:
        """DRIVER_OK: reads the target, which may be in the config space already."""
        self._leaving = False
        self._advance()

    def leave(self) -> None:
        """Unbinding: empties the balloon whatever the target; done when ``actual`` is 0."""
        self._leaving = True
        self._advance()

    def reset(self) -> None:
        """A reset of the machine: no queues, and no balloon; its pages are plain memory again."""
        for buffer in self._in_flight.buffers:
            self.pages.give_back(buffer.pages[::-1])
        self.pages.give_back(self.pages.balloon.take(self.actual))
        self.reporting.stop()
        self.wants_retry = False
        self._in_flight = InFlight(self.settings.in_flight)
        self.rings.queues = {}

    # -- interrupts -----------------------------------------------------------------------

    def config_changed(self) -> None:
        """Handles a config interrupt."""
        self.counters.config_interrupts += 1
        self._advance()

    def retry(self) -> None:
        """Tries again after the pause that follows "out of puff"."""
        if self.wants_retry:
            self._advance()

    def used(self, queue: BalloonQueue) -> None:
        """Handles an interrupt of one queue, or a look at the queue without one."""
        heads = [head for head, _ in self.rings.queues[queue].collect()]
        if not heads:
            return
        match queue:
            case BalloonQueue.INFLATEQ | BalloonQueue.DEFLATEQ:
                if answered := self._in_flight.answered(queue, heads):
                    self._finish(answered)
            case BalloonQueue.STATSQ:
                self._send_stats()
            case BalloonQueue.REPORTING_VQ:
                self.reporting.used()
            case BalloonQueue.FREE_PAGE_VQ:
                raise RuntimeError("a used buffer in a queue that we never fill")
            case unreachable:
                assert_never(unreachable)

    def poll_used(self) -> None:
        """Looks at all queues; for a driver that suppresses interrupts."""
        for queue in list(self.rings.queues):
            self.used(queue)

    # -- inflate and deflate --------------------------------------------------------------

    def _advance(self) -> None:
        self.wants_retry = False
        # If this call returns early, `_look_again` stays set, and `_finish` calls `_advance` once
        # buffers are answered. Linux does the same: an interrupt queues the driver's work again
        # while earlier work waits for its buffers.
        self._look_again = True
        if not self.rings.queues or self._in_flight.full:
            return
        self._look_again = False
        self.num_pages = self._wanted()
        while not self._in_flight.full:
            missing = self.num_pages - self.actual - self._in_flight.inflating_pages
            if missing == 0:
                return
            direction = Direction.INFLATE if missing > 0 else Direction.DEFLATE
            sent = self._in_flight.buffers
            # Never move pages in both directions at once: a page could otherwise be in an inflate
            # and a deflate buffer at the same time.
            if any(buffer.direction is not direction for buffer in sent):
                return
            inflates = direction is Direction.INFLATE
            source = self.pages.free if inflates else self.pages.balloon
            pages = source.take(min(BUFFER_PFNS, abs(missing)))
            if len(pages) == 0:
                if not sent:
                    self._out_of_puff()
                return
            self._send(direction, pages)

    def _wanted(self) -> int:
        if self._leaving:
            return 0
        return int.from_bytes(self.rings.transport.read_config(0, 4), "little")

    def _out_of_puff(self) -> None:
        if self.counters.out_of_puff == 0:
            self._on_event("out_of_puff", self._figures())
        self.counters.out_of_puff += 1
        self.wants_retry = True

    def _send(self, direction: Direction, pages: Pages) -> None:
        if direction is Direction.INFLATE:
            self.counters.inflate_buffers += 1
            self.pages.give_up(pages)
        else:
            self.counters.deflate_buffers += 1
        number = self._in_flight.take_number()
        addr = self.rings.buffer(number)
        content = self.pages.pfns(pages)
        self.rings.write(addr, content)
        cuts = [len(content) * part // self.settings.parts for part in range(self.settings.parts)]
        parts = [
            (addr + start, end - start)
            for start, end in zip(cuts, [*cuts[1:], len(content)], strict=True)
            if end > start
        ]
        head = self.rings.send(direction.queue, parts)
        self._in_flight.add(head, SentBuffer(direction, pages, number))

    def _finish(self, buffers: Sequence[SentBuffer]) -> None:
        for buffer in buffers:
            if buffer.direction is Direction.INFLATE:
                self.pages.balloon.give(buffer.pages)
            else:
                self.pages.give_back(buffer.pages)
        # Write `actual` once for all buffers that were answered together. Linux has a single
        # buffer on its way at a time, so there it is one write for each buffer.
        self.rings.transport.write_config(4, self.actual.to_bytes(4, "little"))
        if self._look_again or self._in_flight.buffers or self.actual != self.num_pages:
            self._advance()
        if self.actual == self.num_pages and not self._in_flight.buffers:
            self._on_event(buffers[0].direction.value, self._figures())

    def _send_stats(self) -> None:
        self.counters.stats_buffers += 1
        content = self.statistics.buffer()
        addr = self.rings.buffer(self.settings.in_flight)
        self.rings.write(addr, content)
        self.rings.send(BalloonQueue.STATSQ, [(addr, len(content))])

    def _figures(self) -> dict[str, int]:
        return {"actual": self.actual, "num_pages": self.num_pages}
