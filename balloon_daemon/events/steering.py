"""Events about what operators ask of the policy for a time. Pure."""

from balloon_daemon.fact import fact
from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.sizing.decision import Ended
from balloon_daemon.units import VmId


@fact
class TakingPaused(NamedTuple):
    """An operator has paused the policy: it takes nothing more from VMs for a time.

    Attributes:
        vm: from this VM; None: from any VM.
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
        wanted_bytes: how much.
        vms: the names of the VMs that it may come from, with commas between them; "": from any.
        within_s: for how many seconds it is tried.
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
        came_bytes: how much has come.
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
    """An operator wants memory to be available above the margin.

    Attributes:
        uid: the user who has asked.
        size_bytes: how much.
        for_s: for how many seconds.
    """

    uid: int
    size_bytes: int
    for_s: float


@fact
class ReserveMet(NamedTuple):
    """As much as the margin and all reserves is available.

    Attributes:
        uid: the user who has asked.
        size_bytes: how much was reserved.
        took_s: after how many seconds.
    """

    uid: int
    size_bytes: int
    took_s: float


@fact
class ReserveNotMet(NamedTuple):
    """Less than the margin and all reserves is available, and nobody waits for it any more.

    Attributes:
        uid: the user who has asked.
        size_bytes: how much was reserved.
        available_mib: what is available, in MiB; None: unknown.
        needed_mib: what should be, in MiB; None: unknown.
        why: why the wait has ended.
    """

    uid: int
    size_bytes: int
    available_mib: int | None
    needed_mib: int | None
    why: Ended


@fact
class ReserveEnded(NamedTuple):
    """A reserve is over.

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
