"""The interface of the controller to every kind of guest: a Protocol, and its reports as values.

Pure. A *guest* is one VM whose balloon can be moved, in whatever way its driver does that. The
controller sets the balloon's size and knows nothing of the way; the guest reports the results.
Both directions carry the balloon's absolute size in bytes, of which only the latest counts: the
next report or target makes up for a lost one.

Reports come in this order: any number of ``StateChanged``, ``Actual``, ``Stats``, ``Held``,
``Refused`` and ``Stuck``; one ``Attached`` once the VM's size is known; from then on ``Resized``
too; ``Gone`` last.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from balloon_daemon.fact import fact
from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.sizing.decision import Reason
from balloon_daemon.sizing.vm_settings import SEED, VmSettings
from balloon_daemon.units import VmId


class VmRow(NamedTuple):
    """The part of a VM's balloon policy that is stored for another balloond.

    Attributes:
        vm_mem_bytes: the VM's size that the policy uses.
        level: how many steps the policy has let the balloon grow; 0: the balloon is empty
            (``sizing/balloon_policy.py``).
        recheck_at_s: when the policy reacts to low memory again, on CLOCK_MONOTONIC; None: it
            reacts at once.
        release_at_s: when to try to lower the level by one, on CLOCK_MONOTONIC; None: there is
            nothing to give back.
    """

    vm_mem_bytes: int
    level: int
    recheck_at_s: float | None
    release_at_s: float | None


class Ability(Enum):
    """Abilities that some guests have and others lack."""

    STATS = "stats"
    """The guest reports statistics when asked for them."""

    DISK_READS = "disk-reads"
    """The guest's statistics say how much it has read from its disks."""

    DEFLATE_ON_OOM = "deflate-on-oom"
    """The guest's driver takes pages back by itself before the guest's kernel kills a process."""

    KEPT_BY_VMM = "kept-by-vmm"
    """The balloon device is the VMM's own, which keeps the target after balloond has ended."""


class GuestState(Enum):
    """The states in which a guest's balloon does or does not follow its target."""

    NO_DRIVER = "no-driver"
    """No balloon driver listens yet: firmware, boot, or a guest without such a driver. The VM has
    all of its memory, whatever size its VMM reports."""

    RUNNING = "running"
    """A driver listens."""

    PAUSED = "paused"
    """The virtual CPUs do not run, or the guest is suspended. Its driver follows a target only
    when the guest runs again, so a balloon that does not move is neither a stall nor a sign of
    need."""

    RETAKING = "retaking"
    """A migration or a snapshot has read all of the guest's memory, by which the host allocated
    what the balloon had freed. So balloond empties the balloon and fills it again in steps; these
    movements are no sign of need."""


# --- guest to controller ------------------------------------------------------------------------


@fact
class Attached(NamedTuple):
    """The VM's size is known, and its balloon can be moved.

    Attributes:
        vm_mem_bytes: the size; 0: this VM can have no balloon.
        can: its abilities.
        balloon_bytes: the size of the balloon that an earlier balloond has left; used only where
            ``row`` is None.
        row: the state of the VM's policy that an earlier balloond has stored; None: none.
        vmm_pid: its VMM's process; None: unknown.
    """

    vm_mem_bytes: int
    can: frozenset[Ability] = frozenset()
    balloon_bytes: int = 0
    row: VmRow | None = None
    vmm_pid: int | None = None


@fact
class CanDo(NamedTuple):
    """The abilities of a VM that was reported as attached have changed.

    Attributes:
        can: its abilities.
    """

    can: frozenset[Ability]


@fact
class Resized(NamedTuple):
    """The VM's size has changed.

    Attributes:
        vm_mem_bytes: the size; 0: this VM can have no balloon.
    """

    vm_mem_bytes: int


@fact
class StateChanged(NamedTuple):
    """The guest's state, which may be the same as before; until the first such report the state is
    ``RUNNING``."""

    state: GuestState


@fact
class Actual(NamedTuple):
    """The balloon's size, as the VM's driver reports it.

    Attributes:
        balloon_bytes: the size.
        at_s: when the size was reported, on CLOCK_MONOTONIC.
    """

    balloon_bytes: int
    at_s: float


@fact
class Held(NamedTuple):
    """How much of the host's memory the VM's memory occupies, as the host's kernel counts it.

    Attributes:
        held_bytes: the blocks of the VM's memory file; without such a file, the resident set of
            its VMM's process.
        at_s: when this was read, on CLOCK_MONOTONIC.
    """

    held_bytes: int
    at_s: float


@dataclass(frozen=True, slots=True)
class Stats:
    """The guest's statistics: bytes, or counts since the guest has booted; None: not reported.

    Attributes:
        at_s: when the statistics came, on CLOCK_MONOTONIC.
        total_bytes: memory that its kernel manages; some drivers leave the balloon out.
        free_bytes: memory that nothing uses.
        available_bytes: memory that could be had without swapping.
        caches_bytes: memory that holds files.
        swap_in_bytes: read from swap.
        swap_out_bytes: written to swap.
        major_faults: page faults that had to read a file or swap.
        minor_faults: page faults that read neither.
        hugetlb_allocations: huge pages requested and allocated.
        hugetlb_failures: huge pages requested and not allocated.
        oom_kills: processes killed for lack of memory.
        alloc_stalls: allocations that had to reclaim memory themselves.
        async_scans: pages that the kernel's own threads looked at to reclaim them.
        direct_scans: pages that allocations looked at to reclaim them.
        async_reclaims: pages that the kernel's own threads reclaimed.
        direct_reclaims: pages that allocations reclaimed.
        disk_read_bytes: read from its disks, as its VMM or the host counts it.
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
    disk_read_bytes: int | None = None


@fact
class Refused(NamedTuple):
    """This VM gets no balloon. ``why`` is a short technical reason."""

    why: str


@fact
class Stuck(NamedTuple):
    """The balloon cannot be moved just now. ``why`` is a short technical reason."""

    why: str


@fact
class Gone(NamedTuple):
    """The VM is gone, or cannot be reached any more. ``why`` is a short technical reason."""

    why: str


Report = Attached | CanDo | Resized | StateChanged | Actual | Stats | Held | Refused | Stuck | Gone
ReportTo = Callable[[VmId, Report], None]
"""Takes a VM's report. Raises StateError: no policy can be in the state of ``Attached.row``."""


# --- controller to guest ------------------------------------------------------------------------


class Guest(Protocol):
    """One VM whose balloon can be moved."""

    @property
    def vm(self) -> VmId:
        """The VM's id."""

    async def serve(self) -> None:
        """Serves the VM until it is gone; cancelled when balloond ends."""

    def set_target(self, target_bytes: int) -> None:
        """Sets the balloon's wanted size; the same size again may be told to the driver again.

        Never blocks.

        Args:
            target_bytes: bytes of balloon, absolute, in whole pages of 4 KiB.
        """

    def request_stats(self) -> None:
        """Asks the guest for ``Stats``; never blocks."""

    def watch(self, every_s: float | None) -> None:
        """Sets how often the guest reports ``Stats`` and ``Held``; never blocks.

        Args:
            every_s: the period in seconds; None: only when asked.
        """

    def against_more(self, level: int) -> Reason | None:
        """Why the guest must not be asked for more memory just now; None: nothing is against it.

        Must be cheap: the policy calls this method each time that the host's memory is low.

        Args:
            level: the level of the VM's policy, as in ``VmRow``; at 0 the balloon is empty.
        """

    def keep(self, row: VmRow) -> bool:
        """Stores this state of the VM's policy for another balloond, with what the guest itself
        needs to go on there.

        Returns:
            Whether the row is stored, will be, or never could be; False: to be called again soon,
            even if the row is the same.
        """

    async def give_back(self) -> None:
        """Lets the balloon shrink to nothing, and waits until the driver reports that."""

    @property
    def stays(self) -> bool:
        """Whether another balloond can take the VM over, with its balloon, if this balloond leaves
        the VM now."""

    def leave(self) -> None:
        """Leaves the VM to another balloond: ``serve`` is cancelled next, and must then keep the
        balloon and all that is stored of the VM."""


# --- where guests come from ---------------------------------------------------------------------


class VmRegistry(Protocol):
    """The controller's side for a driver that finds VMs."""

    def next_vm(self, name: str = "") -> VmId:
        """The id for the next VM, which stays the same until a guest with this id is added.

        Args:
            name: the VM's name; "": ``vm`` and its number.
        """

    def add(self, guest: Guest, settings: VmSettings = SEED, kind: str = "") -> None:
        """Adds a guest, whose reports are accepted from now on.

        Args:
            guest: the guest.
            settings: how much of its memory may be taken, and when.
            kind: how its balloon is reached, as the configuration file calls it.
        """

    def report(self, vm: VmId, report: Report) -> None:
        """Handles a VM's report.

        Raises:
            StateError: ``Attached.row`` holds a state that no policy can be in.
        """

    def serve(self, guest: Guest) -> None:
        """Runs an added guest's ``serve`` as a task until it ends."""

    def change(self, vm: VmId, settings: VmSettings) -> None:
        """Sizes an added guest's balloon by other settings from now on."""

    def dismiss(self, vm: VmId) -> None:
        """Gives an added guest its memory back, and then ends its ``serve``; waits for nothing."""


class GuestDriver(Protocol):
    """Finds the VMs of one kind, and makes a guest for each."""

    @property
    def keeps(self) -> bool:
        """Whether its VMs can be left to another balloond."""

    def start(self, registry: VmRegistry) -> None:
        """Restores the VMs that another balloond left, and finds new ones from now on.

        Raises:
            OSError: the VMs cannot be restored, or new ones cannot be found.
        """

    def stop(self, *, leaving: bool) -> None:
        """Finds no more VMs.

        Args:
            leaving: True: another balloond goes on with the VMs.
        """

    async def close(self, *, leaving: bool) -> None:
        """Closes everything, once its guests have ended.

        Args:
            leaving: True: another balloond goes on with its VMs.
        """
