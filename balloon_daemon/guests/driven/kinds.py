"""Which ``Control`` each kind of VMM has; a kind's modules are imported on first use."""

from collections.abc import Callable

from balloon_daemon.config.vms import Kind
from balloon_daemon.errors import StateError
from balloon_daemon.guests.driven.control import Control


def control_of(kind: Kind) -> Callable[[str], Control]:
    """The function that makes a ``Control`` for the VMM whose socket has a given path.

    Raises:
        StateError: VMs of this kind are not reached through a socket of their VMM.
    """
    match kind:
        case Kind.QMP:
            from balloon_daemon.guests.driven.qmp import QmpControl

            return QmpControl
        case Kind.FIRECRACKER:
            from balloon_daemon.guests.driven.firecracker import FirecrackerControl

            return FirecrackerControl
        case Kind.CLOUD_HYPERVISOR:
            from balloon_daemon.guests.driven.cloud_hypervisor import CloudHypervisorControl

            return CloudHypervisorControl
        case Kind.CROSVM:
            from balloon_daemon.guests.driven.crosvm import CrosvmControl

            return CrosvmControl
        case Kind.VHOST_USER | Kind.LIBVIRT:
            raise StateError(f"{kind.value} has no control of this sort")
