"""The VMs that a configuration names, as values."""

from enum import Enum
from pathlib import Path

from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.sizing.vm_settings import VmSettings


class Kind(Enum):
    """How a VM's balloon is reached; the value is the key of the configuration file."""

    VHOST_USER = "vhost_user"
    QMP = "qmp"
    LIBVIRT = "libvirt"
    CLOUD_HYPERVISOR = "cloud_hypervisor"
    FIRECRACKER = "firecracker"
    CROSVM = "crosvm"


class VmConfig(NamedTuple):
    """One ``[vm.NAME]``, or a VM that was found.

    Attributes:
        name: its name; for libvirt also the domain's.
        kind: how it is reached.
        address: a socket's path; for libvirt a connection URI.
        settings: how much of its memory may be taken, by which rules, and with what priority.
        vm_mem_bytes: its size, for ``VHOST_USER`` alone; None: the size of its memory table.
        matched: the path by which a pattern has found it, which may lead through links to its
            address; "": none has.
    """

    name: str
    kind: Kind
    address: str
    settings: VmSettings
    vm_mem_bytes: int | None = None
    matched: str = ""


class Discover(NamedTuple):
    """``[discover]``: where VMs are found that no ``[vm.NAME]`` names.

    Attributes:
        libvirt: connection URIs of libvirts, all of whose domains are found.
        qmp: patterns of monitor sockets' paths, as of glob(7).
    """

    libvirt: tuple[str, ...] = ()
    qmp: tuple[str, ...] = ()

    @property
    def places(self) -> tuple[str, ...]:
        """All URIs and patterns."""
        return self.libvirt + self.qmp


def bases_path(main_socket: Path, kind: Kind) -> Path:
    """The file of the VMs of this kind, beside balloond's socket: libvirt's domains have a file of
    their own, as each file has one writer."""
    of_libvirt = "libvirt-" if kind is Kind.LIBVIRT else ""
    return main_socket.with_name(f"{main_socket.name}.{of_libvirt}bases")
