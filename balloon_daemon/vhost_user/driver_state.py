"""What is known of the driver behind the rings: whether it begins anew, and what it holds.

Pure. A reset and a pause look the same at first: the front-end stops the rings. ``reset_signed``
stands from the first sign that a driver may begin anew, and the driver reads 0 as ``actual`` from
then on: OpenBSD's and NetBSD's go on from the value that they read when they attach, and give
nothing while it is that of the driver before them. The base at which the inflateq is set up
decides which of the two it was: 0 is a beginning, where it was left a pause, anything else a
driver in mid-life of whose balloon nothing is known (a VMM that has connected anew).

Features and rings are set up in rounds, and each VMM has an order of its own in them: what is told
for the second time begins another round, and what follows the inflateq's base in its round is no
sign of anything.
"""

from dataclasses import dataclass, field

from balloon_daemon.units import PAGE_SIZE, NumPages
from balloon_daemon.virtio.balloon import BalloonConfig, pages_of

DATA_QUEUES = (0, 1)
"""The inflateq and the deflateq, which have the same index with every set of features."""

_BASE = -1
"""What stands for a base in ``told``."""


@dataclass(slots=True)
class DriverState:
    """The driver, as far as its config space and its rings' bases tell.

    Attributes:
        config: the config space.
        reset_signed: a driver may have begun anew; ``config.actual`` is still the last one's.
        config_read: the config space was read since then, so no paused driver is behind it.
        balloon_unknown: its balloon may hold pages that ``config.actual`` does not count.
        told: what was set up in this round, as (request, vring).
        settled: the inflateq's base was among it.
    """

    config: BalloonConfig = field(default_factory=BalloonConfig)
    reset_signed: bool = False
    config_read: bool = False
    balloon_unknown: bool = False
    told: set[tuple[int, int]] = field(default_factory=set)
    settled: bool = False

    def sign_reset(self) -> None:
        """There was a sign that a driver begins anew."""
        self.stopped()
        self._sign()

    def set_up(self, request: int, vring: int = 0) -> None:
        """Features or a part of a vring are told: a sign as well, unless this round is settled."""
        if (request, vring) in self.told:
            self.stopped()
        self.told.add((request, vring))
        if not self.settled:
            self._sign()

    def stopped(self) -> None:
        """The inflateq was stopped: whatever is set up from now on is another round."""
        self.told.clear()
        self.settled = False

    def look_at_config(self) -> None:
        """The config space is about to be read while the inflateq stands still: nobody who is
        paused reads it, but a driver that looks for its device."""
        if not self.settled:
            self._sign()

    def _sign(self) -> None:
        if self.config.actual and not self.reset_signed:
            self.reset_signed, self.config_read = True, False

    def restore(self, num_pages: int, actual: int, *, known: bool, stopped: bool) -> None:
        """Takes over the config space of another controller, whose vrings are restored.

        Args:
            num_pages, actual: 4 KiB pages; no more than a u32 can say counts.
            known: it knew how large the balloon was.
            stopped: the inflateq does not run.
        """
        self.balloon_unknown &= not known
        if stopped:
            self.stopped()
        self.config.num_pages = pages_of(num_pages * PAGE_SIZE)
        self.config.actual = pages_of(actual * PAGE_SIZE)

    def begin_anew(self) -> bool:
        """A driver has begun anew, so nothing is in its balloon; whether anything was."""
        self.reset_signed = self.balloon_unknown = False
        held, self.config.actual = self.config.actual, NumPages(0)
        return held > 0

    def read(self, offset: int, length: int) -> bytes:
        """A read of the config space."""
        if not self.reset_signed:
            return self.config.read(offset, length)
        self.config_read = True
        return BalloonConfig(self.config.num_pages).read(offset, length)

    def write(self, offset: int, content: bytes) -> bool:
        """A write to the config space; whether it wrote ``actual``."""
        if self.reset_signed:
            self.begin_anew()
        written = self.config.write(offset, content)
        self.balloon_unknown &= not written
        return written

    def set_base(self, index: int, base: int, before: int) -> bool:
        """A vring is set up at ``base``, having stood at ``before``; whether the balloon is empty
        by that and was not."""
        if index not in DATA_QUEUES:
            return False
        if index == 0:
            if (_BASE, index) in self.told:
                self.stopped()
            self.told.add((_BASE, index))
            self.settled = True
        if base and base != before:
            self.balloon_unknown, self.reset_signed = True, False
        if base or index:
            self.reset_signed &= index != 0
            return False
        # One that stood at 0 is resumed there, after 65536 chains or none, unless the config space
        # was read meanwhile, which nobody does who is paused.
        if before or (self.reset_signed and self.config_read):
            return self.begin_anew()
        self.reset_signed = False
        return False
