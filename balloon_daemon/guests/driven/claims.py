"""Which VMs are driven, by the processes of their VMMs. Pure.

A configuration may name one VM twice, as libvirt's domain and by a monitor of its QEMU, or by two
monitors: two drivers would then set one balloon to two targets. Two addresses of different kinds
reach the same VM if they lead to the same VMM process. Two of the same kind must also report the
same UUID, as one process may have opened the sockets of several VMs.
"""

from typing import NamedTuple

from balloon_daemon.config.vms import VmConfig


class Claim(NamedTuple):
    """A VM that is driven.

    Attributes:
        pid: its VMM's process; 0: unknown.
        vm_uuid: its UUID, as its VMM says it; "": unknown.
        config: its name, kind and address.
    """

    pid: int
    vm_uuid: str
    config: VmConfig


class Claims:
    """The VMs that are driven."""

    def __init__(self) -> None:
        self._of: dict[int, list[Claim]] = {}

    def other(self, claim: Claim) -> VmConfig | None:
        """The configuration by which the same VM is driven already; None: it is not driven."""
        for taken in self._of.get(claim.pid, ()):
            same_uuid = claim.vm_uuid and claim.vm_uuid == taken.vm_uuid
            if same_uuid or claim.config.kind is not taken.config.kind:
                return taken.config
        return None

    def claim(self, claim: Claim) -> None:
        """Notes that a VM is driven."""
        if claim.pid:
            self._of.setdefault(claim.pid, []).append(claim)

    def release(self, claim: Claim) -> None:
        """Notes that a VM is driven no more."""
        if claim.pid:
            self._of[claim.pid].remove(claim)
            if not self._of[claim.pid]:
                del self._of[claim.pid]
