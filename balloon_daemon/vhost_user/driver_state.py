"""Tells from vhost-user messages whether a driver begins anew, and what its balloon holds.

Pure. A reset and a pause begin alike: the front-end stops the rings. ``reset_signed`` is set at
the first sign that a driver may begin anew, and while it is set the driver reads 0 as ``actual``.
OpenBSD's and NetBSD's drivers start counting from the value that they read when they attach: if
they read the earlier driver's value, they would hand over no pages. The base with which the
inflateq is then set up decides: 0 means that a driver begins anew; the base where the queue was
stopped means the end of a pause; any other base means a driver in mid-life of whose balloon
nothing is known (a VMM that has connected anew).

Features and rings are set up in rounds, in an order that differs between VMMs. A request repeated
for the same vring begins another round; requests after the inflateq's base in a round are no sign
of a reset.

``poison_val`` is valid only for the driver that wrote it. A driver writes the value before
DRIVER_OK, so before any ring runs, and must not write it afterwards (virtio 1.3, 5.5.6.6). The
write comes before the inflateq's base, and therefore before it is known that this driver is new.
Linux's driver does not write the value again after a suspend (its ``restore``), so the value of a
driver that begins without having written it is unknown.
"""

from dataclasses import dataclass, field

from balloon_daemon.units import PAGE_SIZE, NumPages
from balloon_daemon.virtio.balloon import BalloonConfig, pages_of

DATA_QUEUES = (0, 1)
"""The inflateq and the deflateq, which have the same index with every set of features."""

_BASE = -1
"""Stands in ``set_up_so_far`` for SET_VRING_BASE, in place of its request number."""


@dataclass(slots=True)
class DriverState:
    """The driver's state, as its config accesses and ring bases show it.

    Attributes:
        config: the config space.
        reset_signed: a driver may have begun anew; ``config.actual`` is still the earlier
            driver's.
        config_read: the config space was read since ``reset_signed`` was set, so the driver is not
            a paused one, which would read nothing.
        balloon_unknown: the balloon may hold pages that ``config.actual`` does not count.
        set_up_so_far: what was set up in this round, as (request, vring). A round begins when the
            inflateq is stopped, or when a part is set up for the second time.
        settled: the inflateq's base was set in this round.
        poison_is_new: ``config.poison_val`` was written since the inflateq was stopped, that is,
            by the driver for which the inflateq is set up next.
    """

    config: BalloonConfig = field(default_factory=BalloonConfig)
    reset_signed: bool = False
    config_read: bool = False
    balloon_unknown: bool = False
    set_up_so_far: set[tuple[int, int]] = field(default_factory=set)
    settled: bool = False
    poison_is_new: bool = False

    def sign_reset(self) -> None:
        """Notes a sign that a driver begins anew."""
        self.stopped()
        self._sign()

    def set_up(self, request: int, vring: int = 0) -> None:
        """Notes that features or a part of a vring are set up: a sign of a new driver, unless this
        round has the inflateq's base already."""
        if (request, vring) in self.set_up_so_far:
            self._begin_round()
        self.set_up_so_far.add((request, vring))
        if not self.settled:
            self._sign()

    def stopped(self) -> None:
        """Notes that the inflateq was stopped: later requests belong to another round, and a value
        of ``poison_val`` that is written from now on to another driver."""
        self.poison_is_new = False
        self._begin_round()

    def _begin_round(self) -> None:
        self.set_up_so_far.clear()
        self.settled = False

    def look_at_config(self) -> None:
        """Notes that the config space is about to be read while the inflateq stands still: a
        paused driver reads nothing, but a driver that looks for its device does."""
        if not self.settled:
            self._sign()

    def _sign(self) -> None:
        forgets = self.config.actual or self.config.poison_val is not None
        if forgets and not self.reset_signed:
            self.reset_signed, self.config_read = True, False

    def restore(self, num_pages: int, actual: int, *, known: bool, stopped: bool) -> None:
        """Takes over another controller's config space, after the vrings were restored.

        Args:
            num_pages, actual: 4 KiB pages, limited to a u32.
            known: True: that controller knew how large the balloon was.
            stopped: True: the inflateq does not run.
        """
        self.balloon_unknown &= not known
        if stopped:
            self.stopped()
        self.config.num_pages = pages_of(num_pages * PAGE_SIZE)
        self.config.actual = pages_of(actual * PAGE_SIZE)

    def begin_anew(self) -> bool:
        """Sets ``actual`` to 0 and forgets ``poison_val`` unless it is the new driver's, as a
        driver begins anew; True where ``actual`` was above 0."""
        self.reset_signed = self.balloon_unknown = False
        self._forget_poison_val()
        held, self.config.actual = self.config.actual, NumPages(0)
        return held > 0

    def _forget_poison_val(self) -> None:
        if not self.poison_is_new:
            self.config.poison_val = None

    def read(self, offset: int, length: int) -> bytes:
        """Reads bytes of the config space."""
        if not self.reset_signed:
            return self.config.read(offset, length)
        self.config_read = True
        return BalloonConfig(self.config.num_pages).read(offset, length)

    def write(self, offset: int, content: bytes, *, started: bool = True) -> bool:
        """Writes bytes to the config space; True where ``actual`` was written or is 0 now.

        Args:
            started: True: the inflateq runs. Then ``poison_val`` stays: the driver must not write
                it any more, and a VMM that writes the whole space with each ``actual`` writes
                there what it has read.
        """
        if not started or self.reset_signed:
            return self._write_first(offset, content, started=started)
        written = self.config.write(offset, content)
        self.balloon_unknown &= not written
        return written

    def _write_first(self, offset: int, content: bytes, *, started: bool) -> bool:
        """Writes bytes for a driver that may have no ring yet."""
        whole = not offset and len(content) >= BalloonConfig.SIZE
        emptied = False
        if self.reset_signed or (whole and not started):
            emptied = self.begin_anew()
        if not (whole and started) and self.config.write_poison_val(offset, content):
            self.poison_is_new = True
        if whole and not started:
            # The driver has written ``poison_val``, and QEMU sends the whole space as it
            # remembers it: ``actual`` in it may be an earlier driver's. A driver without a ring
            # has handed no page over.
            return emptied
        written = self.config.write(offset, content)
        self.balloon_unknown &= not written
        return written or emptied

    def set_base(self, index: int, base: int, before: int) -> bool:
        """Notes that a vring is set up at ``base`` and stood at ``before``. True where this shows
        that a driver has begun anew, so that a balloon that held pages is empty now."""
        if index not in DATA_QUEUES:
            return False
        if index == 0:
            if (_BASE, index) in self.set_up_so_far:
                self._begin_round()
            self.set_up_so_far.add((_BASE, index))
            self.settled = True
        emptied = self._take_base(index, base, before)
        # This driver runs from here on; for the next one ``poison_val`` is an earlier driver's.
        self.poison_is_new &= index != 0
        return emptied

    def _take_base(self, index: int, base: int, before: int) -> bool:
        if base and base != before:
            self.balloon_unknown, self.reset_signed = True, False
            if index == 0:
                self._forget_poison_val()
        if base or index:
            self.reset_signed &= index != 0
            return False
        # The inflateq is to start at 0. If it stood elsewhere before, its driver is new. If it
        # stood at 0 already (after none or 65536 chains), the driver may only have been paused. A
        # read of the config space since the reset excludes a pause: a paused driver reads nothing.
        if before or (self.reset_signed and self.config_read):
            return self.begin_anew()
        self.reset_signed = False
        return False
