"""Tells which size a QEMU guest's balloon has, although QEMU's figures are not always true. Pure.

QEMU reports the size that the guest's driver wrote last. In four cases that is not the balloon's
size:

- Before a driver listens, and after a reset, through firmware and boot, the guest has all of its
  memory, whatever QEMU reports. The first statistics, or the first size written, tell that a
  driver listens; the time of statistics is 0 again after a reset.
- After a reset the next driver sends its first statistics some milliseconds before it writes its
  first size. Until then QEMU still reports the size from before the reset. That size counts again
  only if the driver writes it, or if it has not changed for ``SETTLED_S``.
- QEMU delays the event BALLOON_CHANGE by up to a second: an event that comes after a RESET may be
  about a size that the driver wrote before the reset.
- With legacy virtio the driver writes the size byte by byte, and QEMU reports half-written sizes.
  So a size that is not between the last known size and the target counts only if the next reading
  lies on the same side of the last known size.

Some guests' drivers send no statistics, and write no size before they are asked for memory. So a
guest that has run for ``SILENT_S`` with an empty balloon and without statistics is taken to have
such a driver.
"""

SILENT_S = 300.0
"""Longer than firmware and boot take, even in a guest that checks its disks."""

SETTLED_S = 10.0
"""Longer than a driver takes from its first statistics to its first size. A driver may write the
size that QEMU reports already, of which QEMU sends no event: after this time that size counts.
"""


class QmpBalloon:
    """The size of one guest's balloon, as far as it is known."""

    def __init__(self) -> None:
        self._target: int | None = None
        self._size: int | None = None
        # The size from which the balloon moves to its target: the last known one, or 0 after a
        # reset.
        self._last: int | None = None
        self._doubted: int | None = None
        self._reset_us: int | None = None
        self._update_at_reset = 0
        self._last_update = 0
        self._written = False
        self._now_s = 0.0
        self._silent_since_s: float | None = None
        # The size from before a reset that QEMU may still report; None: it does not.
        self._before: int | None = None
        self._unchanged_s = 0.0

    @property
    def balloon_bytes(self) -> int | None:
        """The balloon's size; None: not known."""
        return self._size

    @property
    def listens(self) -> bool:
        """Whether a driver listens, or is taken to listen after ``SILENT_S``."""
        since_s = self._silent_since_s
        return self._is_heard or (since_s is not None and self._now_s - since_s >= SILENT_S)

    @property
    def _is_heard(self) -> bool:
        return self._written or self._last_update not in (0, self._update_at_reset)

    @property
    def doubted(self) -> bool:
        """Whether the last reading waits for another one to confirm it."""
        return self._doubted is not None

    def told(self, target_bytes: int) -> None:
        """Notes that QEMU has taken this target."""
        self._target = target_bytes

    def reset(self, at_us: int) -> bool:
        """Notes that the guest was reset.

        Args:
            at_us: when, by QEMU's clock.

        Returns:
            Whether this RESET is news to the caller; not if no driver has listened since the last
            one, as QEMU may send several RESET events for one reset.
        """
        news = self._reset_us is None or self.listens
        if news:
            # QEMU 11 sets the time of the last statistics to 0 at a reset. Other versions might
            # keep it: a time that is still the same does not show that a driver listens.
            self._update_at_reset = self._last_update
        if self._size is not None:
            self._before = self._size
        self._reset_us = at_us
        self._written = False
        self._silent_since_s = None
        self._unchanged_s = 0.0
        self._forget()
        return news

    def written(self, at_us: int) -> None:
        """Notes that the driver wrote a size at this time, by QEMU's clock (BALLOON_CHANGE)."""
        if self._reset_us is None or at_us > self._reset_us:
            self._written = True

    def passes(self, now_s: float, *, runs: bool) -> None:
        """Notes the time of the next reading.

        Args:
            now_s: the time.
            runs: whether the guest's virtual CPUs run. Time in which they do not run is left out
                of ``SILENT_S`` and ``SETTLED_S``, as the guest can send nothing meanwhile.
        """
        if runs and self._before is not None and self.listens:
            self._unchanged_s += now_s - self._now_s
        if not runs and self._silent_since_s is not None and not self.listens:
            self._silent_since_s += now_s - self._now_s
        self._now_s = now_s

    def read(self, balloon_bytes: int, last_update: int) -> None:
        """Takes in the figures that QEMU reports.

        Args:
            balloon_bytes: the VM's size less what query-balloon said.
            last_update: the time of the guest's last statistics, 0 for none.
        """
        self._last_update = last_update
        if not last_update:
            self._update_at_reset = 0
        if balloon_bytes and self.listens and not self._is_heard:
            self._written = True  # Only a driver writes a size; BALLOON_CHANGE comes later.
        if self._is_heard or balloon_bytes:
            # A size that QEMU reports may be from before a reset: measure no silence meanwhile.
            self._silent_since_s = None
        elif self._silent_since_s is None:
            self._silent_since_s = self._now_s
        if not self.listens:
            self._forget()
            if self._reset_us is not None:
                self._before, self._unchanged_s = balloon_bytes, 0.0
        elif self._is_from_before(balloon_bytes):
            self._forget()
            if self._target == 0:
                self._size = 0  # The driver has nothing to do, and so writes no size.
        elif self._is_likely(balloon_bytes):
            self._size = self._last = balloon_bytes
            self._doubted = None
        else:
            self._doubted = balloon_bytes
        if self._written:
            # The driver has written a size: QEMU reports the size from before the reset no more.
            # Forget that size only now, for the next figures: QEMU may have answered the present
            # ones before the write.
            self._before = None

    def _is_from_before(self, balloon_bytes: int) -> bool:
        if balloon_bytes != self._before:
            self._before = None
        return bool(self._before) and self._unchanged_s < SETTLED_S

    def _is_likely(self, balloon_bytes: int) -> bool:
        last, doubted = self._last, self._doubted
        if last is None:
            return True
        target = last if self._target is None else self._target
        if min(last, target) <= balloon_bytes <= max(last, target):
            return True
        return doubted is not None and (doubted > last) == (balloon_bytes > last)

    def _forget(self) -> None:
        """Forgets the size that QEMU reports: the guest has all of its memory, and its balloon
        moves from 0 to the target."""
        self._size = self._doubted = None
        self._last = 0
