"""Compares what a guest says it gave with what the host got. Pure.

A VM can use no more than its size less its balloon. Host memory that it occupies beyond that was
taken from the guest and not freed for the host. A VM that occupies less proves nothing: memory
that the guest has never touched occupies no host memory.
"""

import math

from balloon_daemon.sizing.decision import Missing
from balloon_daemon.units import MIB, MOST_MEMORY_BYTES

OWN_BYTES, OWN_SHARE = 256 * MIB, 64
"""How much more a VM may occupy without a finding, 256 MiB and a 64th: the VMM's tables for each
guest page, and the VMM's own memory (heap, threads, video memory), which is counted too if only
the size of the VMM's resident set is known."""

LONG_S = 30.0
"""How long a VM must occupy too much before memory counts as missing: the figures are not read at
the same moment, and a huge page is freed only when the guest has given all of it."""


class Proof:
    """Compares the size of one VM's balloon with the host memory that the VM occupies."""

    def __init__(self) -> None:
        self.missing_bytes = 0
        """How many bytes of the balloon the host has not got; 0: none are missing."""
        self.untouched_bytes = 0
        """How much of the VM's memory outside its balloon occupied no host memory at the last
        figures, as the guest had not used it yet; 0: none, or unknown."""
        self.most_bytes = MOST_MEMORY_BYTES
        """The largest size of the balloon that the host memory which the VM occupied at the last
        figures allows."""
        self._over_since_s = math.inf
        self._proved_bytes = 0
        """The balloon's size when the VM last did not occupy too much."""

    def take(
        self, held_bytes: int, vm_mem_bytes: int, balloon_bytes: int, now_s: float
    ) -> Missing | None:
        """Takes how much host memory the VM occupies.

        Returns:
            If memory is missing from now on: the likely cause. NOTHING: it is not missing any
            more. None: no change.
        """
        self.untouched_bytes = max(0, vm_mem_bytes - balloon_bytes - held_bytes)
        own_bytes = OWN_BYTES + vm_mem_bytes // OWN_SHARE
        self.most_bytes = max(0, vm_mem_bytes + own_bytes - held_bytes)
        over_bytes = held_bytes - (vm_mem_bytes - balloon_bytes)
        if over_bytes <= own_bytes:
            self._proved_bytes = balloon_bytes
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
        # Find the cause. When the balloon last had ``_proved_bytes``, the VM did not occupy too
        # much. If it occupies more now than it was allowed to then, freed memory was allocated
        # again. If not, only the balloon has grown, and what the guest gave was not freed.
        grew = held_bytes - (vm_mem_bytes - self._proved_bytes) > own_bytes
        return Missing.REFILLED if grew else Missing.NEVER_FREED
