"""Events about what operators ask of the policy for a time. Pure."""

from typing import NamedTuple

from balloon_daemon.fact import fact
from balloon_daemon.sizing.decision import Ended
from balloon_daemon.units import VmId


@fact
class TakingPaused(NamedTuple):
    """An operator has paused the policy: it asks for nothing more for a time.

    Attributes:
        vm: of this VM; None: of any VM.
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
        vm: of this VM; None: of all VMs.
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


SteeringEvent = TakingPaused | TakingResumed | ReclaimBegan | ReclaimEnded
"""The union of all events about what operators ask for."""
