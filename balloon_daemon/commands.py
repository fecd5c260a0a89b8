"""What may be asked of a controller that runs. Pure values, and the Protocol of who is asked.

Whoever asks (the API) needs to know neither the controller nor its guests.
"""

from collections.abc import Callable, Sequence
from enum import Enum
from typing import NamedTuple, Protocol

from balloon_daemon.sizing.decision import Reason
from balloon_daemon.status import HostStatus, VmStatus
from balloon_daemon.units import VmId

MOST_HOLD_S = 86_400.0
"""The longest time for which a balloon's size may be set: what somebody forgets ends in a day."""


class Release(NamedTuple):
    """Give a VM all of its balloon back, now. The policy goes on from an empty balloon."""

    vm: VmId


class SetBalloon(NamedTuple):
    """Make a VM's balloon this large, and give nothing of it back for a time.

    Attributes:
        vm: the VM.
        balloon_bytes: the size; rounded down to whole pages.
        for_s: for how long, at most ``MOST_HOLD_S``. Low memory ends it, and so does a guest in
            need.
    """

    vm: VmId
    balloon_bytes: int
    for_s: float


class Refusal(Enum):
    """Why something that was asked is not done."""

    ENDING = "ending"
    """balloond ends, and decides nothing any more."""
    NO_SIZE = "no-size"
    """The VM has not reported its size yet, or has just gone."""
    TOO_LARGE = "too-large"
    """The balloon may not be so large."""
    OBJECTION = "objection"
    """The guest must not be asked for more now."""


class Done(NamedTuple):
    """It is done: the VM was told its target.

    Attributes:
        balloon_bytes: its balloon's size, as its driver reported it before.
        target_bytes: what it is to be.
    """

    balloon_bytes: int
    target_bytes: int


class NotDone(NamedTuple):
    """It is not done.

    Attributes:
        why: why.
        most_bytes: how large the balloon may be, for ``TOO_LARGE``.
        objection: what stands against it, for ``OBJECTION``.
    """

    why: Refusal
    most_bytes: int = 0
    objection: Reason | None = None


class Reloaded(NamedTuple):
    """The configuration was read anew, and is in force.

    Attributes:
        changed: what is other than before, a line each.
    """

    changed: tuple[str, ...]


class NotReloaded(NamedTuple):
    """The configuration was read anew, and the one before stays in force, whole.

    Attributes:
        mistakes: why, a line each.
    """

    mistakes: tuple[str, ...]


class Desk(Protocol):
    """Answers questions about the host and its VMs. No call waits for anything."""

    def host_status(self) -> HostStatus:
        """The present state of the source and of the policy."""

    def vm_ids(self) -> Sequence[VmId]:
        """The VMs, in the order in which they came."""

    def vm_status(self, vm_id: VmId) -> VmStatus | None:
        """The present state of a VM; None: there is no such VM any more."""

    def obey(self, command: Release | SetBalloon, uid: int) -> Done | NotDone:
        """Does what is asked.

        Args:
            command: what is asked.
            uid: the user who asks.
        """


class Reloader(Protocol):
    """Has the configuration read anew."""

    def reload(self, done: Callable[[Reloaded | NotReloaded], None]) -> None:
        """Begins to read it; waits for nothing.

        Args:
            done: takes the result; not where balloond ends before.
        """


class Service(Protocol):
    """Runs in the controller's event loop, beside the guests."""

    def start(self, desk: Desk, reloader: Reloader | None) -> None:
        """Begins to serve, in the running event loop.

        Args:
            desk: answers, and does what is asked.
            reloader: has the configuration read anew; None: nobody can.
        """

    def close(self) -> None:
        """Ends to serve."""
