"""Compares what a guest says it gave with what the host got. Pure.

A VM can use no more than its size less its balloon, so what its memory occupies beyond that was
taken from the guest and not freed for the host. Less is no sign of anything: memory that the guest
has never touched occupies none.
"""

import math

from balloon_daemon.sizing.decision import Missing
from balloon_daemon.units import MIB

OWN_BYTES, OWN_SHARE = 256 * MIB, 64
"""What may be occupied besides: a VMM's own memory, where its resident set is all that is known
(heap, threads, video memory), and its tables for each page of the guest. 256 MiB and a 64th."""

LONG_S = 30.0
"""For so long it must be too much: the figures are not of one moment, and of a huge page nothing
is freed before the guest has given all of it."""


class Proof:
    """One VM's balance."""

    def __init__(self) -> None:
        self.missing_bytes = 0
        """What the host has not got; 0 where all is well."""
        self._over_since_s = math.inf
        self._was_freed = False

    def take(
        self, held_bytes: int, vm_mem_bytes: int, balloon_bytes: int, now_s: float
    ) -> Missing | None:
        """Takes what the VM's memory occupies.

        Returns:
            A change: what is likely the cause, or that the host has got it after all.
        """
        own_bytes = OWN_BYTES + vm_mem_bytes // OWN_SHARE
        over_bytes = held_bytes - (vm_mem_bytes - balloon_bytes)
        if over_bytes <= own_bytes:
            # Part of a small balloon may be missing without a sign, so it proves nothing.
            self._was_freed = balloon_bytes > own_bytes
            self._over_since_s = math.inf
            was_missing, self.missing_bytes = self.missing_bytes, 0
            return Missing.NOTHING if was_missing else None
        self._over_since_s = min(self._over_since_s, now_s)
        if self.missing_bytes:
            self.missing_bytes = over_bytes
            return None
        if now_s - self._over_since_s < LONG_S:
            return None
        self.missing_bytes = over_bytes
        return Missing.REFILLED if self._was_freed else Missing.NEVER_FREED
