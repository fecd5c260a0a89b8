"""Events about the protection of guests: when a VM is asked for no more, and why. Pure."""

from balloon_daemon.fact import fact
from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.sizing.decision import Missing, Sign
from balloon_daemon.units import VmId


@fact
class GuestInNeed(NamedTuple):
    """A guest needs the memory that its balloon holds: all of it is given back at once.

    Attributes:
        signs: the signs that show the need, sorted by the words that the log has for them.
        balloon_bytes: its balloon's size.
        left_alone_s: for how long the guest is asked for nothing.
    """

    vm: VmId
    signs: tuple[Sign, ...]
    balloon_bytes: int
    left_alone_s: float


@fact
class SqueezeStalled(NamedTuple):
    """A balloon does not grow towards its target: its present size becomes the target.

    Attributes:
        target_bytes: the target until then.
        balloon_bytes: the balloon's present size.
        left_alone_s: for how long the guest is asked for no more.
    """

    vm: VmId
    target_bytes: int
    balloon_bytes: int
    left_alone_s: float


@fact
class BalloonContested(NamedTuple):
    """Somebody else sets a VM's balloon: no targets are sent for a time.

    Attributes:
        target_bytes: our target.
        balloon_bytes: the balloon's size.
        left_alone_s: for how long no target is sent.
    """

    vm: VmId
    target_bytes: int
    balloon_bytes: int
    left_alone_s: float


@fact
class BalloonMissing(NamedTuple):
    """Much of the memory that a guest gave to its balloon is still allocated on the host after a
    long time.

    Attributes:
        cause: why, as far as that can be told.
        missing_bytes: how many bytes of its balloon are still allocated on the host.
        balloon_bytes: its balloon's size.
    """

    vm: VmId
    cause: Missing
    missing_bytes: int
    balloon_bytes: int


@fact
class BalloonFreed(NamedTuple):
    """The part of a balloon that the host lacked is free now, or the balloon was given back."""

    vm: VmId


ProtectionEvent = GuestInNeed | SqueezeStalled | BalloonContested | BalloonMissing | BalloonFreed
"""The union of all events about the protection of guests."""
