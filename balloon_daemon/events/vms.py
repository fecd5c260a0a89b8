"""Events about VMs: their connections, balloons, stored state and end. Pure."""

from balloon_daemon.fact import fact
from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.sizing.decision import Decision
from balloon_daemon.units import VmId

# --- a VMM's connection -------------------------------------------------------------------------


@fact
class Connected(NamedTuple):
    """A VMM has connected, or its connection was taken over from another balloond.

    Attributes:
        uid: the user who runs the VMM, according to the kernel (SO_PEERCRED).
    """

    vm: VmId
    uid: int


@fact
class Disconnected(NamedTuple):
    """A VM is gone: its connection is closed, for whatever reason."""

    vm: VmId


@fact
class VmmHungUp(NamedTuple):
    """A VMM has closed its connection between two messages."""

    vm: VmId
    suppressed: int = 0


@fact
class ConnectionClosed(NamedTuple):
    """A VMM's connection is closed, because it broke the protocol or its stored state is unusable.

    Attributes:
        why: the error's text.
    """

    vm: VmId
    why: str
    suppressed: int = 0


@fact
class ConnectionFailed(NamedTuple):
    """The kernel ended a VMM's connection with an error.

    Attributes:
        error: the kernel's text.
    """

    vm: VmId
    error: str
    suppressed: int = 0


@fact
class AlreadyConnected(NamedTuple):
    """A connection was closed at once: the one VM that may use that socket is connected.

    Attributes:
        uid: the user who runs the VMM.
    """

    vm: VmId
    uid: int
    suppressed: int = 0


@fact
class RequestNotServed(NamedTuple):
    """A VMM's request was answered but cannot be served.

    Attributes:
        why: the request's name and the reason, in the back-end's words.
    """

    vm: VmId
    why: str


@fact
class VmNotServed(NamedTuple):
    """A VM gets no balloon, whatever its VMM requests.

    Attributes:
        why: the reason, in the back-end's words.
    """

    vm: VmId
    why: str


@fact
class NoBackendChannel(NamedTuple):
    """A VMM gives no back-end channel (VHOST_USER_SET_BACKEND_REQ_FD), so its guest cannot be told
    of a new target (VHOST_USER_BACKEND_CONFIG_CHANGE_MSG)."""

    vm: VmId


# --- a VM's size and its balloon -----------------------------------------------------------------


@fact
class VmAttached(NamedTuple):
    """A VM's size is known, and its balloon policy begins.

    Attributes:
        vm_mem_bytes: its size; 0: it can have no balloon.
        max_balloon_bytes: its balloon's greatest size.
        steps: the number of steps in which its balloon grows.
    """

    vm: VmId
    vm_mem_bytes: int
    max_balloon_bytes: int
    steps: int


@fact
class VmResized(NamedTuple):
    """A VM's size has changed.

    Attributes:
        vm_mem_bytes: its size; 0: it can have no balloon.
        max_balloon_bytes: its balloon's greatest size.
        steps: the number of steps in which its balloon grows.
    """

    vm: VmId
    vm_mem_bytes: int
    max_balloon_bytes: int
    steps: int
    quiet: bool = False


@fact
class BalloonSought(NamedTuple):
    """A guest's driver ran before balloond did, so its balloon's size has to be found out."""

    vm: VmId


@fact
class BalloonFound(NamedTuple):
    """A balloon's size was found out.

    Attributes:
        actual_bytes: the size, as the driver reports it.
    """

    vm: VmId
    actual_bytes: int


@fact
class Decided(NamedTuple):
    """The balloon policy has made a decision.

    Attributes:
        decision: the reading, the decision and its reason.
    """

    vm: VmId
    decision: Decision
    quiet: bool = False


@fact
class TargetWithheld(NamedTuple):
    """A dry run has decided on a target, and not sent it.

    Attributes:
        target_bytes: the target.
    """

    vm: VmId
    target_bytes: int


@fact
class SizeAsked(NamedTuple):
    """An operator has asked for a balloon's size, and the VM has been told it.

    Attributes:
        uid: the user who has asked.
        balloon_bytes: the size; 0: all is given back.
        for_s: for how many seconds none of the balloon is given back.
    """

    vm: VmId
    uid: int
    balloon_bytes: int
    for_s: float


@fact
class TargetReached(NamedTuple):
    """A balloon has reached its target.

    Attributes:
        actual_bytes: the balloon's size, as the driver reports it.
        missing_bytes: how many bytes of the balloon are still allocated on the host.
    """

    vm: VmId
    actual_bytes: int
    missing_bytes: int
    quiet: bool = False


# --- the store of VMs' states and descriptors ---------------------------------------------------


@fact
class TakenOver(NamedTuple):
    """balloond goes on to serve a VM from the state that another balloond stored for it."""

    vm: VmId


@fact
class StateRefused(NamedTuple):
    """The state that another balloond stored for a VM is unusable: its VMM's connection is closed.

    Attributes:
        why: the error's text, the end of the log's sentence "the state that another balloond left
            …".
    """

    vm: VmId
    why: str


@fact
class NotStored(NamedTuple):
    """A VM's state cannot be put into the store.

    Attributes:
        error: the kernel's text.
    """

    vm: VmId
    error: str
    suppressed: int = 0


@fact
class StoreShareUsed(NamedTuple):
    """A VM is not stored, because its user's other VMs use up that user's share of the store.

    Attributes:
        uid: its user.
        vms: how many of its VMs are stored, which take all that one user's may.
    """

    vm: VmId
    uid: int
    vms: int
    suppressed: int = 0


@fact
class StoreStalled(NamedTuple):
    """The store does not answer in time: a VMM's request is answered before its state is stored.

    Attributes:
        why: the store's text.
    """

    vm: VmId
    why: str


# --- the end ------------------------------------------------------------------------------------


@fact
class GivingBack(NamedTuple):
    """A guest is told to take its memory back, because balloond ends.

    Attributes:
        balloon_bytes: its balloon's size; None: it is unknown.
    """

    vm: VmId
    balloon_bytes: int | None


@fact
class StillToGiveBack(NamedTuple):
    """A guest has not taken all of its memory back yet.

    Attributes:
        left_bytes: what is left in its balloon.
    """

    vm: VmId
    left_bytes: int


@fact
class NotGivenBack(NamedTuple):
    """A guest has not taken its memory back in time, and balloond waits no longer.

    Attributes:
        left_bytes: the size that its balloon keeps.
    """

    vm: VmId
    left_bytes: int


@fact
class VmDoesNotEnd(NamedTuple):
    """A VM's task does not end and is abandoned: a bug."""

    vm: VmId


@fact
class VmFailed(NamedTuple):
    """A VM's task raised an unexpected error: a bug.

    Attributes:
        error: the exception's class and text.
    """

    vm: VmId
    error: str


VmEvent = (
    Connected
    | Disconnected
    | VmmHungUp
    | ConnectionClosed
    | ConnectionFailed
    | AlreadyConnected
    | RequestNotServed
    | VmNotServed
    | NoBackendChannel
    | VmAttached
    | VmResized
    | BalloonSought
    | BalloonFound
    | Decided
    | SizeAsked
    | TargetReached
    | TargetWithheld
    | TakenOver
    | StateRefused
    | NotStored
    | StoreShareUsed
    | StoreStalled
    | GivingBack
    | StillToGiveBack
    | NotGivenBack
    | VmDoesNotEnd
    | VmFailed
)
"""The union of all events about VMs, without those about their memory and devices."""
