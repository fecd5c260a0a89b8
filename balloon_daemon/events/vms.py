"""What happens with VMs: their connections, their balloons, what is kept, their end. Pure."""

from dataclasses import dataclass

from balloon_daemon.sizing.decision import Decision
from balloon_daemon.units import VmId

# --- its VMM's connection -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Connected:
    """A VMM has connected, or its connection was taken over from another balloond.

    Attributes:
        uid: the user who runs the VMM, as the kernel says (SO_PEERCRED).
    """

    vm: VmId
    uid: int


@dataclass(frozen=True, slots=True)
class Disconnected:
    """A VM is gone: its connection is closed, for whatever reason."""

    vm: VmId


@dataclass(frozen=True, slots=True)
class VmmHungUp:
    """A VMM has closed its connection in order."""

    vm: VmId
    suppressed: int = 0


@dataclass(frozen=True, slots=True)
class ConnectionClosed:
    """A VMM broke the protocol, or what was kept of it cannot be used: its connection is closed.

    Attributes:
        why: the error's text.
    """

    vm: VmId
    why: str
    suppressed: int = 0


@dataclass(frozen=True, slots=True)
class ConnectionFailed:
    """The kernel gave up a VMM's connection.

    Attributes:
        error: the kernel's text.
    """

    vm: VmId
    error: str
    suppressed: int = 0


@dataclass(frozen=True, slots=True)
class RequestNotServed:
    """A VMM's request was answered, and what it asks for cannot be done.

    Attributes:
        why: the request's name and the reason, as the back-end says them.
    """

    vm: VmId
    why: str


@dataclass(frozen=True, slots=True)
class VmNotServed:
    """A VM gets no balloon, whatever its VMM asks for.

    Attributes:
        why: the reason, as the back-end says it.
    """

    vm: VmId
    why: str


@dataclass(frozen=True, slots=True)
class NoBackendChannel:
    """A VMM gives no back-end channel, so that no target can be signalled to its guest."""

    vm: VmId


# --- its size and its balloon --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class VmAttached:
    """A VM's size is known, and its balloon policy begins.

    Attributes:
        vm_mem_bytes: its size; 0: it can have no balloon.
        max_balloon_bytes: its balloon's greatest size.
        steps: in how many steps its balloon grows.
    """

    vm: VmId
    vm_mem_bytes: int
    max_balloon_bytes: int
    steps: int


@dataclass(frozen=True, slots=True)
class VmResized:
    """A VM has another size from now on.

    Attributes:
        vm_mem_bytes: its size; 0: it can have no balloon.
        max_balloon_bytes: its balloon's greatest size.
        steps: in how many steps its balloon grows.
    """

    vm: VmId
    vm_mem_bytes: int
    max_balloon_bytes: int
    steps: int
    quiet: bool = False


@dataclass(frozen=True, slots=True)
class BalloonSought:
    """A guest's driver was there before balloond: its balloon's size has to be found out."""

    vm: VmId


@dataclass(frozen=True, slots=True)
class BalloonFound:
    """A balloon's size was found out.

    Attributes:
        actual_bytes: the size, as the driver says.
    """

    vm: VmId
    actual_bytes: int


@dataclass(frozen=True, slots=True)
class Decided:
    """The balloon policy has decided.

    Attributes:
        decision: what it saw, what it decided and why.
    """

    vm: VmId
    decision: Decision
    quiet: bool = False


@dataclass(frozen=True, slots=True)
class TargetReached:
    """A balloon has the size that it was to have.

    Attributes:
        actual_bytes: the balloon's size, as the driver says.
        missing_bytes: what of that the host has not got.
    """

    vm: VmId
    actual_bytes: int
    missing_bytes: int
    quiet: bool = False


# --- what is kept for another balloond ----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TakenOver:
    """A VM goes on where another balloond left it."""

    vm: VmId


@dataclass(frozen=True, slots=True)
class StateRefused:
    """What another balloond kept of a VM cannot be gone on from: its VMM is closed.

    Attributes:
        why: the error's text, for "the state that another balloond left …".
    """

    vm: VmId
    why: str


@dataclass(frozen=True, slots=True)
class NotStored:
    """A VM's state cannot be put into the store.

    Attributes:
        error: the kernel's text.
    """

    vm: VmId
    error: str
    suppressed: int = 0


@dataclass(frozen=True, slots=True)
class StoreShareUsed:
    """A VM is not kept, as its user's other VMs take that user's share of the store.

    Attributes:
        uid: its user.
        vms: how many VMs of one user are kept.
    """

    vm: VmId
    uid: int
    vms: int
    suppressed: int = 0


@dataclass(frozen=True, slots=True)
class StoreStalled:
    """The store takes nothing: a VMM is answered without it.

    Attributes:
        why: the store's text.
    """

    vm: VmId
    why: str


# --- the end ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GivingBack:
    """A guest is told to take its memory back, as balloond ends.

    Attributes:
        balloon_bytes: its balloon's size; None: nobody knows it.
    """

    vm: VmId
    balloon_bytes: int | None


@dataclass(frozen=True, slots=True)
class StillToGiveBack:
    """A guest has not taken all of its memory back yet.

    Attributes:
        left_bytes: what is left in its balloon.
    """

    vm: VmId
    left_bytes: int


@dataclass(frozen=True, slots=True)
class NotGivenBack:
    """A guest has not taken its memory back in time, and nobody waits any longer.

    Attributes:
        left_bytes: what stays in its balloon.
    """

    vm: VmId
    left_bytes: int


@dataclass(frozen=True, slots=True)
class VmDoesNotEnd:
    """A VM's task does not end and is left behind: a bug."""

    vm: VmId


@dataclass(frozen=True, slots=True)
class VmFailed:
    """A VM's task ended by an error that nobody expected: a bug.

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
    | RequestNotServed
    | VmNotServed
    | NoBackendChannel
    | VmAttached
    | VmResized
    | BalloonSought
    | BalloonFound
    | Decided
    | TargetReached
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
"""All that happens with VMs but for their memory and devices."""
