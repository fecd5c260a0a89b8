"""The checks of ``balloonctl doctor``, its findings, and the facts about the host that it uses.
Pure."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

from balloon_daemon.units import MIB

LEAST_BYTES, LEAST_SHARE = 64 * MIB, 64
"""An amount of memory below 64 MiB, or below a 64th of the host's memory, is no finding: it is
less than a third of the default margin (5.2 %), and hardly changes when the host becomes low."""


class Check(Enum):
    """What is checked; the value is the word in ``--json``."""

    SWAPPED = "swapped"
    """Free pages of a guest lie in the host's swap."""

    NOTHING_RETURNED = "nothing-returned"
    """The memory in a guest's balloon is still allocated on the host."""

    NO_DRIVER = "no-driver"
    """No balloon driver listens in a guest."""

    NO_STATISTICS = "no-statistics"
    """A guest sends no statistics."""

    CONTESTED = "contested"
    """Another program than balloond sets a VM's balloon."""

    RIVAL = "rival"
    """A program or a script that sets balloons is on this host."""

    NOT_DRIVEN = "not-driven"
    """balloond knows of a VM and cannot drive its balloon."""

    NOT_MOVED = "not-moved"
    """A VM's balloon can neither grow nor shrink."""

    ZFS_ARC = "zfs-arc"
    """MemAvailable leaves out what ZFS's cache would give back."""

    HUGE_PAGE_POOL = "huge-page-pool"
    """Memory lies idle in a pool of huge pages."""

    GRAPHICS_POOL = "graphics-pool"
    """MemAvailable leaves out the free pages that graphics drivers keep."""

    ZRAM = "zram"
    """MemAvailable counts memory that swapping to zram has gained for a time only."""

    MARGIN = "margin"
    """The margin does not fit the host's size, or balloons cannot reach it."""

    NO_FIGURES = "no-figures"
    """What is available on the host is not known, or low memory is switched off."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong.

    Attributes:
        check: which check has found it.
        what: what is wrong, with the figures, in a sentence.
        remedy: what to do about it, in a sentence.
        vm: the VM's name; None: the finding is about the host.
        figures: the figures, for machines; sizes in bytes.
    """

    check: Check
    what: str
    remedy: str
    vm: str | None = None
    figures: dict[str, int | str | None] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The finding as values of JSON."""
        return {
            "check": self.check.value,
            "vm": self.vm,
            "what": self.what,
            "remedy": self.remedy,
            "figures": self.figures,
        }


class Arc(NamedTuple):
    """ZFS's cache, in bytes.

    Attributes:
        size_bytes: its size now.
        min_bytes: its least size (``c_min``): ZFS gives the rest back when memory runs out.
    """

    size_bytes: int
    min_bytes: int


class Zram(NamedTuple):
    """All swap areas on zram, in bytes.

    Attributes:
        stored_bytes: the pages in there, as large as they were in memory.
        used_bytes: the memory that they occupy, compressed.
    """

    stored_bytes: int
    used_bytes: int


class HostFacts(NamedTuple):
    """This host's memory, in bytes.

    Attributes:
        total_bytes: MemTotal.
        available_bytes: MemAvailable.
        usable_bytes: the most that could be available: MemTotal without pools of huge pages.
        idle_pool_bytes: pages of such pools that are neither in use nor reserved.
        graphics_pool_bytes: free pages that graphics drivers keep; None: the size is not known.
        arc: ZFS's cache; None: there is none.
        zram: swap on zram.
        rivals: names of running programs that set balloons, and hook scripts that do.
    """

    total_bytes: int
    available_bytes: int
    usable_bytes: int
    idle_pool_bytes: int = 0
    graphics_pool_bytes: int | None = None
    arc: Arc | None = None
    zram: Zram = Zram(0, 0)
    rivals: tuple[str, ...] = ()

    @property
    def much_bytes(self) -> int:
        """The least amount of this host's memory that is worth a finding."""
        return max(LEAST_BYTES, self.total_bytes // LEAST_SHARE)
