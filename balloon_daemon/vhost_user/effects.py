"""The effects that a back-end asks its caller for, and the vrings that it offers. Pure values."""

from balloon_daemon.fact import fact
from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.units import NumPages
from balloon_daemon.vhost_user.memory_table import Fd
from balloon_daemon.vhost_user.messages import Message, VringAddr
from balloon_daemon.virtio.balloon import BalloonQueue


class ReadyVring(NamedTuple):
    """A vring that a device can be forked with; ``kick`` and ``call`` stay the back-end's."""

    index: int  # type: ignore[assignment] # hides tuple.index(), which nobody calls
    queue: BalloonQueue
    size: int
    addr: VringAddr
    kick: Fd
    call: Fd | None


@fact
class Send(NamedTuple):
    """Send these bytes to the front-end."""

    reply: bytes


@fact
class StopDevice(NamedTuple):
    """End the device, if one runs, before performing any later effect."""


@fact
class AnswerVringBase(NamedTuple):
    """Stop this vring and answer GET_VRING_BASE with the stopped device's ``used.idx``."""

    index: int  # type: ignore[assignment] # hides tuple.index(), which nobody calls


@fact
class RingsChanged(NamedTuple):
    """The set of ready vrings may have changed: fork a device once the front-end has finished."""


@fact
class ActualWritten(NamedTuple):
    """The driver wrote ``actual``."""

    actual: NumPages


@fact
class PoisonValWritten(NamedTuple):
    """The driver wrote ``poison_val``, which it does once, before its rings are set up."""


@fact
class NotServed(NamedTuple):
    """A request was understood but cannot be served. The front-end is not told that, so an event
    should tell the user.

    Attributes:
        why: one line, beginning with the request's name.
    """

    why: str


Effect = (
    Send
    | StopDevice
    | AnswerVringBase
    | RingsChanged
    | ActualWritten
    | PoisonValWritten
    | NotServed
)

RESTART: list[Effect] = [StopDevice(), RingsChanged()]
"""The effects of a request that changes anything with which a device was forked."""

NO_ROOM = "its descriptors found no room here (too many open files)"


def not_served(message: Message, why: str) -> NotServed:
    """The effect of a request that cannot be served."""
    return NotServed(f"{message.name}: {why}")
