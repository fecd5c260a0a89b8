"""All VMs of the host, as the controller sees them."""

from balloon_daemon.controller.vm import Vm
from balloon_daemon.listing import Listing
from balloon_daemon.units import VmId


class Vms(dict[VmId, Vm]):
    """The VMs, in the order in which they came; ``by_name`` has the order of listings."""

    def __init__(self) -> None:
        super().__init__()
        self._listing = Listing()

    def __setitem__(self, vm_id: VmId, vm: Vm) -> None:
        if vm_id not in self:
            self._listing.add(vm_id)
        super().__setitem__(vm_id, vm)

    def __delitem__(self, vm_id: VmId) -> None:
        super().__delitem__(vm_id)
        self._listing.remove(vm_id)

    def by_name(self) -> tuple[VmId, ...]:
        """The VMs by their names; those of one name in the order in which they came."""
        return self._listing.ids()
