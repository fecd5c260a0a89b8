"""Events about operators' commands that are in force for a time: pauses, reclaims and reserves.
Pure."""

from balloon_daemon.fact import fact
from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.sizing.decision import Ended
from balloon_daemon.units import VmId


@fact
class TakingPaused(NamedTuple):
    """An operator's pause has begun: nothing more is taken from VMs for a time.

    Attributes:
        vm: nothing is taken from this VM; None: from any VM.
        uid: the user who has asked.
        for_s: for how many seconds.
    """

    vm: VmId | None
    uid: int
    for_s: float


@fact
class TakingResumed(NamedTuple):
    """A pause is over.

    Attributes:
        vm: the VM that was paused; None: all VMs were.
        uid: the user who has ended it; None: its time was over.
    """

    vm: VmId | None
    uid: int | None


@fact
class ReclaimBegan(NamedTuple):
    """An operator wants memory from guests now.

    Attributes:
        uid: the user who has asked.
        wanted_bytes: how much memory.
        vms: the names of the VMs that the memory may come from, with commas between them; "": from
            any.
        within_s: for how many seconds guests are asked at most.
    """

    uid: int
    wanted_bytes: int
    vms: str
    within_s: float


@fact
class ReclaimEnded(NamedTuple):
    """A reclaim has ended.

    Attributes:
        uid: the user who has asked.
        wanted_bytes: how much was wanted.
        came_bytes: how much of it the balloons hold.
        took_s: in how many seconds.
        why: why it has ended.
    """

    uid: int
    wanted_bytes: int
    came_bytes: int
    took_s: float
    why: Ended


@fact
class ReserveBegan(NamedTuple):
    """An operator wants more of the host's memory to stay available than the margin.

    Attributes:
        uid: the user who has asked.
        size_bytes: how much more.
        for_s: for how many seconds.
    """

    uid: int
    size_bytes: int
    for_s: float


@fact
class ReserveMet(NamedTuple):
    """The host has as much available as the margin and all reserves add up to.

    Attributes:
        uid: the user who has asked.
        size_bytes: how much was reserved.
        took_s: how many seconds after the command.
    """

    uid: int
    size_bytes: int
    took_s: float


@fact
class ReserveNotMet(NamedTuple):
    """The wait for a reserve has ended, and the host has less available than the margin and all
    reserves add up to. The reserve stays in force.

    Attributes:
        uid: the user who has asked.
        size_bytes: how much was reserved.
        available_mib: what is available, in MiB; None: unknown.
        needed_mib: the margin and all reserves, in MiB; None: unknown.
        why: why the wait has ended.
    """

    uid: int
    size_bytes: int
    available_mib: int | None
    needed_mib: int | None
    why: Ended


@fact
class ReserveEnded(NamedTuple):
    """A reserve is no longer in force.

    Attributes:
        uid: the user who had asked.
        size_bytes: how much was reserved.
        why: why it has ended.
    """

    uid: int
    size_bytes: int
    why: Ended


SteeringEvent = (
    TakingPaused
    | TakingResumed
    | ReclaimBegan
    | ReclaimEnded
    | ReserveBegan
    | ReserveMet
    | ReserveNotMet
    | ReserveEnded
)
"""The union of all events about what operators ask for."""
