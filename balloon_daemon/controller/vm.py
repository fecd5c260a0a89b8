"""One VM as the controller sees it: which guest it is, and what that has reported last."""

from dataclasses import dataclass, field

from balloon_daemon.guests.seam import Ability, Guest, Refused, Stats, Stuck
from balloon_daemon.rate_limit import RateLimit

SIZES_A_SECOND = 2
"""Changes of one VM's size that are of interest: a guest may name any total, at any time."""


@dataclass(slots=True, eq=False)
class Vm:
    """A VM.

    Attributes:
        guest: its guest.
        can: what it could do when it attached.
        balloon_bytes: its balloon's size, as the driver says.
        stats: its guest's statistics; None where it has sent none.
        trouble: what was last said to be wrong with its balloon; None where nothing is.
        sizes: limits what is said of its size.
    """

    guest: Guest
    can: frozenset[Ability] = frozenset()
    balloon_bytes: int = 0
    stats: Stats | None = None
    trouble: Refused | Stuck | None = None
    sizes: RateLimit = field(default_factory=lambda: RateLimit(SIZES_A_SECOND))
