"""Events about what operators ask of the policy for a time. Pure."""

from typing import NamedTuple

from balloon_daemon.fact import fact
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


SteeringEvent = TakingPaused | TakingResumed
"""The union of all events about what operators ask for."""
