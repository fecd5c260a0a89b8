"""Which ``Control`` each kind of VMM has; imports a kind's modules when it is asked for."""

from collections.abc import Callable

from balloon_daemon.config.vms import Kind
from balloon_daemon.guests.driven.control import Control


def control_of(kind: Kind) -> Callable[[str], Control]:
    """What connects to the VMM whose socket has a given path.

    Args:
        kind: one whose VMs have a socket each.
    """
    match kind:
        case _:
            raise NotImplementedError(kind.value)
