"""On what terms a VM is squeezed: the limits of its balloon, from its size and its settings. Pure.

A *floor* is the memory that a guest keeps, a *ceiling* the size that its balloon may have. Both
only lower the balloon's maximum, and the policy's steps are sixteenths of what is left, so that no
target, whichever step asks for it, leaves a guest less than its floor.
"""

from dataclasses import dataclass

from balloon_daemon.sizing.balloon_policy import max_balloon_bytes
from balloon_daemon.sizing.vm_settings import SEED, Profile, VmSettings
from balloon_daemon.units import MIB, PAGE_SIZE

BLIND_SHARE = 4
BLIND_BYTES = 256 * MIB
"""A careful VM keeps a quarter of its memory, and at least 256 MiB, if its need would not be
noticed (no statistics) or its driver cannot take pages back by itself. Other projects' balloon
loops keep 15 to 25 % free, and a Linux guest of 256 MiB still starts its services."""


@dataclass(frozen=True, slots=True)
class Terms:
    """One VM's settings, and what its driver can do for its protection.

    Attributes:
        settings: what the operator has set for it.
        sends_stats: its guest sends statistics, which show that it is in need.
        deflates_on_oom: its driver takes pages back before the guest's kernel kills a process.
    """

    settings: VmSettings = SEED
    sends_stats: bool = True
    deflates_on_oom: bool = True

    @property
    def is_careful(self) -> bool:
        """Whether the guest is protected: the profile is careful or adaptive."""
        return self.settings.profile is not Profile.SEED

    @property
    def is_adaptive(self) -> bool:
        """Whether ``Adaptive`` sizes the balloon."""
        return self.settings.profile is Profile.ADAPTIVE

    def max_bytes(self, vm_mem_bytes: int) -> int:
        """The largest balloon of a VM of this size, in bytes of whole pages; 0: none."""
        settings = self.settings
        most = max_balloon_bytes(vm_mem_bytes)
        if settings.ceiling_bytes is not None:
            most = min(most, settings.ceiling_bytes)
        most = min(most, vm_mem_bytes - self._floor_bytes(vm_mem_bytes))
        return max(most, 0) // PAGE_SIZE * PAGE_SIZE

    def _floor_bytes(self, vm_mem_bytes: int) -> int:
        floor = self.settings.floor_bytes or 0
        if self.is_careful and not (self.sends_stats and self.deflates_on_oom):
            floor = max(floor, vm_mem_bytes // BLIND_SHARE, BLIND_BYTES)
        return floor
