"""A VM as the controller sees it: its guest, and the guest's last reports."""

from dataclasses import dataclass, field

from balloon_daemon.guests.seam import Ability, Guest, Refused, Stats, Stuck
from balloon_daemon.rate_limit import RateLimit

SIZES_A_SECOND = 2
"""Changes of a VM's size published at full level: a guest may report any size at any time."""


@dataclass(slots=True, eq=False)
class Vm:
    """A VM.

    Attributes:
        guest: its guest.
        can: its abilities when it attached.
        balloon_bytes: its balloon's size, as the driver reports it.
        stats: its guest's last statistics; None where it has sent none.
        trouble: the last report of trouble with its balloon; None where there is none.
        sizes: limits the events about its size.
    """

    guest: Guest
    can: frozenset[Ability] = frozenset()
    balloon_bytes: int = 0
    stats: Stats | None = None
    trouble: Refused | Stuck | None = None
    sizes: RateLimit = field(default_factory=lambda: RateLimit(SIZES_A_SECOND))
