"""The memory of a simulated guest: its uses, and how fast and at what cost some is freed. Pure.

Theory of operation
    A guest's memory is anonymous memory, page cache (of which a part is the working set), the
    balloon and free memory. Programs and the balloon driver allocate memory in this order:

    ============================  =================================  ===========================
    taken from                    at most at the rate                what it costs the guest
    ============================  =================================  ===========================
    free memory                   ``free_rate``                      nothing
    cold page cache               ``cold_rate``                      a read, if it is read again
    idle anonymous memory         ``swap_rate``, if there is swap    nothing
    the working set               ``set_rate``                       stalls: it is read again
    used anonymous memory         ``swap_rate``, if there is swap    stalls: it is swapped in
    ============================  =================================  ===========================
"""

from balloon_daemon.ctl.simulate.load import Kind


class Memory:
    """One guest's memory; all sizes in MiB.

    Args:
        kind: its size, its kernel, and its programs as they begin.
        untouched: the share of its free memory that it has never used. The host has allocated no
            pages for that memory, so a balloon that takes it frees nothing on the host.
    """

    def __init__(self, kind: Kind, untouched: float) -> None:
        self.size_mib, self.kernel, load = kind
        self._swap_mib, self._idle = load.swap_mib, not load.swap_touches
        self.anon_mib, self.swapped_mib = load.anon_mib, 0.0
        self.set_mib = min(load.set_mib, load.cache_mib)
        """How much of the working set is in memory."""
        self.cold_mib = load.cache_mib - self.set_mib
        self.balloon_mib = 0.0
        self.untouched_mib = max(0.0, self.free_mib) * untouched

    @property
    def free_mib(self) -> float:
        """Memory that nothing uses."""
        used = self.anon_mib + self.set_mib + self.cold_mib + self.balloon_mib
        return self.size_mib - self.kernel.own_mib - used

    @property
    def available_mib(self) -> float:
        """The available memory that the guest reports (si_mem_available)."""
        cache = self.set_mib + self.cold_mib
        kept = self.kernel.reserve_mib + min(cache / 2, self.kernel.low_mib)
        return max(0.0, self.free_mib + cache - kept)

    @property
    def held_mib(self) -> float:
        """Host memory that the VM occupies."""
        return self.size_mib - self.balloon_mib - self.untouched_mib

    @property
    def can_reclaim(self) -> bool:
        """Whether something is left that could be dropped or swapped out."""
        return self.cold_mib + self.set_mib + self._swap_mib - self.swapped_mib > 1

    def obtain(self, want_mib: float, seconds: float) -> float:
        """Makes memory free for programs or the balloon, as far as time and memory allow.

        Args:
            want_mib: how much is wanted.
            seconds: how long it may take.

        Returns:
            How many MiB were made free; the caller must add them to one of the uses.
        """
        kernel, left_s = self.kernel, seconds
        got = self._use_free(want_mib, kernel.keep_mib)
        after = self.free_mib - got
        for take, rate in (
            (self.drop_cold, kernel.cold_rate),
            (self._swap_out_idle, kernel.swap_rate),
            (self._drop_set, kernel.set_rate),
            (self._swap_out, kernel.swap_rate),
        ):
            if want_mib - got <= 0 or left_s <= 0:
                return got
            dropped = take(min(want_mib - got, left_s * rate))
            left_s -= dropped / rate
            got += dropped
        if left_s > 0:
            got += max(0.0, min(want_mib - got, after - kernel.least_mib))
        return got

    def fill(self, want_mib: float) -> float:
        """Turns free memory into page cache, down to ``keep_mib``; returns how many MiB."""
        return self._use_free(want_mib, self.kernel.keep_mib)

    def drop_cold(self, size_mib: float) -> float:
        """Drops page cache that is not read again; returns how much."""
        dropped = min(size_mib, self.cold_mib)
        self.cold_mib -= dropped
        return dropped

    def give_back(self, size_mib: float) -> float:
        """Takes pages out of the balloon; returns how many MiB. The host allocates memory for them
        only when the guest uses them."""
        back = min(size_mib, self.balloon_mib)
        self.balloon_mib -= back
        self.untouched_mib += back
        return back

    def _use_free(self, want_mib: float, keep_mib: float) -> float:
        free = self.free_mib
        got = min(want_mib, max(0.0, free - keep_mib))
        if got:
            # An allocation takes free pages that the host has allocated and untouched ones in
            # proportion to how many there are of each.
            self.untouched_mib -= self.untouched_mib * got / free
        return got

    def _drop_set(self, size_mib: float) -> float:
        dropped = min(size_mib, self.set_mib)
        self.set_mib -= dropped
        return dropped

    def _swap_out_idle(self, size_mib: float) -> float:
        return self._swap_out(size_mib) if self._idle else 0.0

    def _swap_out(self, size_mib: float) -> float:
        out = min(size_mib, max(0.0, self._swap_mib - self.swapped_mib), self.anon_mib)
        self.anon_mib -= out
        self.swapped_mib += out
        return out
