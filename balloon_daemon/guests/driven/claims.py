"""Which VMs are driven, by their sockets and the processes of their VMMs. Pure.

A configuration may name one VM twice, as libvirt's domain and by a monitor of its QEMU, by two
monitors, or by two paths of one socket: two drivers would then set one balloon to two targets. Two
paths reach the same VM if they lead to the same socket (/var/run/web.sock, /run/web.sock). Two
addresses of different kinds reach the same VM if they lead to the same VMM process. Two of the
same kind must also report the same UUID, as one process may have opened the sockets of several
VMs.
"""

from balloon_daemon.config.vms import VmConfig
from balloon_daemon.named_tuple import NamedTuple

SocketId = tuple[int, int]
"""A socket's device and inode numbers, which are the same by all of its paths."""


class Claim(NamedTuple):
    """A VM that is driven.

    Attributes:
        pid: its VMM's process; 0: unknown.
        vm_uuid: its UUID, as its VMM says it; "": unknown.
        config: its name, kind and address.
        socket: the socket at its address; None: it has none, or the socket is gone.
    """

    pid: int
    vm_uuid: str
    config: VmConfig
    socket: SocketId | None = None


class Claims:
    """The VMs that are driven, so that no VM is driven by two names."""

    def __init__(self) -> None:
        self._of_process: dict[int, list[Claim]] = {}
        self._of_socket: dict[SocketId, Claim] = {}

    def other(self, claim: Claim) -> VmConfig | None:
        """The configuration by which the same VM is driven already; None: it is not driven."""
        if claim.socket is not None and (taken := self._of_socket.get(claim.socket)) is not None:
            return taken.config
        for taken in self._of_process.get(claim.pid, ()):
            same_uuid = claim.vm_uuid and claim.vm_uuid == taken.vm_uuid
            if same_uuid or claim.config.kind is not taken.config.kind:
                return taken.config
        return None

    def claim(self, claim: Claim) -> None:
        """Notes that a VM is driven."""
        if claim.pid:
            self._of_process.setdefault(claim.pid, []).append(claim)
        if claim.socket is not None:
            self._of_socket[claim.socket] = claim

    def release(self, claim: Claim) -> None:
        """Notes that a VM is driven no more."""
        if claim.pid:
            self._of_process[claim.pid].remove(claim)
            if not self._of_process[claim.pid]:
                del self._of_process[claim.pid]
        if claim.socket is not None:
            del self._of_socket[claim.socket]
