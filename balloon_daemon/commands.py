"""What may be asked of a controller that runs. Pure values, and the Protocol of who is asked.

Whoever asks (the API) needs to know neither the controller nor its guests.
"""

from collections.abc import Sequence
from typing import Protocol

from balloon_daemon.status import HostStatus, VmStatus
from balloon_daemon.units import VmId


class Desk(Protocol):
    """Answers questions about the host and its VMs. No call waits for anything."""

    def host_status(self) -> HostStatus:
        """The present state of the source and of the policy."""

    def vm_ids(self) -> Sequence[VmId]:
        """The VMs, in the order in which they came."""

    def vm_status(self, vm_id: VmId) -> VmStatus | None:
        """The present state of a VM; None: there is no such VM any more."""


class Service(Protocol):
    """Runs in the controller's event loop, beside the guests."""

    def start(self, desk: Desk) -> None:
        """Begins to serve, in the running event loop."""

    def close(self) -> None:
        """Ends to serve."""
