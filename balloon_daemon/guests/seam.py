"""The seam between the controller and every kind of guest: a Protocol, and its reports as values.

Pure. A *guest* is one VM whose balloon can be moved, by whatever way its driver knows. The
controller says how large the balloon is to be and never how that is done; the guest reports what
has become of it. There is one unit in both directions: bytes of balloon, absolute, and the last
value wins, so that whatever gets lost heals with the next one.

Reports come in this order: any number of ``Actual``, ``Stats``, ``Refused`` and ``Stuck``; one
``Attached`` once the VM's size is known; from then on ``Resized`` too; ``Gone`` last.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol

from balloon_daemon.sizing.decision import Reason
from balloon_daemon.units import VmId


class VmRow(NamedTuple):
    """What is to be remembered of a VM's policy for another balloond.

    Attributes:
        vm_mem_bytes: the size that the policy goes by.
        level: the policy's.
        recheck_at_s: when to listen to low memory again, on CLOCK_MONOTONIC; None: it listens.
        release_at_s: when to try a step down, on CLOCK_MONOTONIC; None: there is nothing to give.
    """

    vm_mem_bytes: int
    level: int
    recheck_at_s: float | None
    release_at_s: float | None


class Ability(Enum):
    """What one guest can do and another cannot."""

    STATS = "stats"
    """It reports statistics when it is asked for them."""


# --- guest to controller ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Attached:
    """The VM's size is known, and its balloon can be moved.

    Attributes:
        vm_mem_bytes: the size; 0: this VM can have no balloon.
        can: what it can do.
        balloon_bytes: what an earlier balloond has left in its balloon, where nothing was kept.
        row: what an earlier balloond has kept of its policy; None: nothing.
    """

    vm_mem_bytes: int
    can: frozenset[Ability] = frozenset()
    balloon_bytes: int = 0
    row: VmRow | None = None


@dataclass(frozen=True, slots=True)
class Resized:
    """The VM has another size from now on.

    Attributes:
        vm_mem_bytes: the size; 0: this VM can have no balloon.
    """

    vm_mem_bytes: int


@dataclass(frozen=True, slots=True)
class Actual:
    """The balloon is so large, as the VM's driver says.

    Attributes:
        balloon_bytes: its size.
        at_s: when that was true, on CLOCK_MONOTONIC.
    """

    balloon_bytes: int
    at_s: float


@dataclass(frozen=True, slots=True)
class Stats:
    """The guest's statistics: bytes, or counts since it began; None where it does not say.

    Attributes:
        at_s: when they came, on CLOCK_MONOTONIC.
        total_bytes: memory that its kernel manages; some drivers leave the balloon out.
        free_bytes: memory that nothing uses.
        available_bytes: memory that could be had without swapping.
        caches_bytes: memory that holds files.
        swap_in_bytes: read from swap.
        swap_out_bytes: written to swap.
        major_faults: page faults that had to read a file or swap.
        minor_faults: page faults that had not.
        hugetlb_allocations: huge pages that were asked for and had.
        hugetlb_failures: huge pages that were asked for and not had.
        oom_kills: processes killed for lack of memory.
        alloc_stalls: allocations that had to reclaim memory themselves.
        async_scans: pages that the kernel's own threads looked at to reclaim them.
        direct_scans: pages that allocations looked at to reclaim them.
        async_reclaims: pages that the kernel's own threads reclaimed.
        direct_reclaims: pages that allocations reclaimed.
    """

    at_s: float
    total_bytes: int | None = None
    free_bytes: int | None = None
    available_bytes: int | None = None
    caches_bytes: int | None = None
    swap_in_bytes: int | None = None
    swap_out_bytes: int | None = None
    major_faults: int | None = None
    minor_faults: int | None = None
    hugetlb_allocations: int | None = None
    hugetlb_failures: int | None = None
    oom_kills: int | None = None
    alloc_stalls: int | None = None
    async_scans: int | None = None
    direct_scans: int | None = None
    async_reclaims: int | None = None
    direct_reclaims: int | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """This VM gets no balloon. ``why`` is a short technical reason."""

    why: str


@dataclass(frozen=True, slots=True)
class Stuck:
    """The balloon cannot be moved just now. ``why`` is a short technical reason."""

    why: str


@dataclass(frozen=True, slots=True)
class Gone:
    """The VM is gone, or can be reached no more. ``why`` is a short technical reason."""

    why: str


Report = Attached | Resized | Actual | Stats | Refused | Stuck | Gone
ReportTo = Callable[[VmId, Report], None]
"""Takes a VM's report. Raises StateError: ``Attached`` has a row that no policy can be in."""


# --- controller to guest ------------------------------------------------------------------------


class Guest(Protocol):
    """One VM whose balloon can be moved."""

    @property
    def vm(self) -> VmId:
        """Which VM."""

    async def serve(self) -> None:
        """Serves the VM until it is gone; cancelled when balloond ends."""

    def set_target(self, target_bytes: int) -> None:
        """Tells the driver how large the balloon is to be; the same value again: once more.

        Never blocks.

        Args:
            target_bytes: bytes of balloon, absolute, in whole pages of 4 KiB.
        """

    def request_stats(self) -> None:
        """Asks the guest for ``Stats``; never blocks."""

    def against_more(self, level: int) -> Reason | None:
        """Why the guest must not be asked for more just now; None: it may be.

        Cheap: it is asked at each look at low memory.

        Args:
            level: the policy's; at 0 the balloon is empty.
        """

    def keep(self, row: VmRow) -> None:
        """Remembers this beside what the guest keeps of itself for another balloond."""

    async def give_back(self) -> None:
        """Lets the balloon shrink to nothing, and waits until the driver says that it has."""

    def leave(self) -> None:
        """Leaves the VM to another balloond: ``serve``, cancelled next, gives up nothing."""


# --- where guests come from ---------------------------------------------------------------------


class VmRegistry(Protocol):
    """What the controller offers to whoever finds VMs."""

    def next_vm(self) -> VmId:
        """The id that the next VM gets; used up by ``add``."""

    def add(self, guest: Guest) -> None:
        """Knows a guest from now on, and takes its reports."""

    def report(self, vm: VmId, report: Report) -> None:
        """Takes a VM's report.

        Raises:
            StateError: ``Attached`` has a row that no policy can be in.
        """

    def serve(self, guest: Guest) -> None:
        """Runs ``serve`` of a guest that was added, until it ends."""


class GuestDriver(Protocol):
    """Finds the VMs of one kind, and makes a guest of each."""

    @property
    def keeps(self) -> bool:
        """Whether its VMs can be left to another balloond."""

    def start(self, registry: VmRegistry) -> None:
        """Goes on with the VMs that another balloond left, and finds new ones from now on.

        Raises:
            OSError: it cannot.
        """

    def stop(self, *, leaving: bool) -> None:
        """Finds no more VMs.

        Args:
            leaving: another balloond goes on with them.
        """

    async def close(self, *, leaving: bool) -> None:
        """Lets go of all that it has, once its guests have ended.

        Args:
            leaving: another balloond goes on with its VMs.
        """
