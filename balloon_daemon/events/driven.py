"""Events about driven VMs, whose balloon belongs to their own VMM. Pure.

A VM that cannot be driven has no ``VmId``: it is named by its name and its address.
"""

from enum import Enum

from balloon_daemon.fact import fact
from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.units import VmId


class Fault(Enum):
    """Why a VM's balloon cannot be driven; the value is the word for a metric's label."""

    NOT_THERE = "not-there"
    """Nobody listens at the VM's address: the VM does not run, or the address is wrong."""

    NO_VM = "no-vm"
    """The VMM or libvirt at the address answers that it has no such VM: the VM does not run yet,
    or no longer, or its name is wrong."""

    NO_SIZE = "no-size"
    """How much memory the VM has cannot be found out yet."""

    NO_PERMISSION = "no-permission"
    """The kernel does not let balloond connect."""

    NOT_A_SOCKET = "not-a-socket"
    """The VM's address is a file that is no socket of a VMM."""

    HELD = "held"
    """Another client holds the only connection that the VMM serves."""

    HANGS = "hangs"
    """The VMM does not answer in time."""

    PATH_HANGS = "path-hangs"
    """Looking the VM's address up takes too long, or took too long lately."""

    NONSENSE = "nonsense"
    """The VMM answers in a way that its protocol does not allow, or with impossible figures."""

    GONE = "gone"
    """The VMM has closed the connection, or the VM has ended."""

    NO_BALLOON = "no-balloon"
    """The VM has no balloon device."""

    HUGETLB = "hugetlb"
    """The VM's memory is in huge pages (hugetlbfs), of which a balloon frees nothing."""

    PINNED = "pinned"
    """A host device is assigned to the VM (VFIO), which pins the VM's memory."""

    OWN_DEVICE = "own-device"
    """The VM is attached to a device of this balloond already."""

    REFUSED = "refused"
    """The VMM refuses the call."""

    NO_FDS = "no-fds"
    """No descriptor is left for a connection to the VMM."""

    NO_LIBRARY = "no-library"
    """A library that this kind of VM needs is not installed."""


@fact
class VmNotDriven(NamedTuple):
    """A VM's balloon cannot be driven, for as long as the reason lasts; balloond tries again.

    Attributes:
        name: the VM's name.
        address: its socket's path, or its connection URI.
        fault: why.
        detail: the VMM's or the kernel's own words; "" where it has none.
        quiet: the VM's last attempt failed for the same reason.
    """

    name: str
    address: str
    fault: Fault
    detail: str = ""
    quiet: bool = False


@fact
class VmNotSought(NamedTuple):
    """A VM that was discovered is not looked for any more: its socket or its domain is gone.

    Attributes:
        name: the VM's name.
    """

    name: str
    quiet: bool = True


@fact
class VmNotWanted(NamedTuple):
    """A configuration that was read anew neither names nor discovers a VM any more. The VM gets
    its memory back, and after that balloond no longer drives its balloon.

    Attributes:
        name: the VM's name.
    """

    name: str


@fact
class VmDriven(NamedTuple):
    """A VM's balloon is driven from now on.

    Attributes:
        address: its socket's path, or its connection URI.
        vm_mem_bytes: all memory that it could have.
        pid: its VMM's process; None: unknown.
        quiet: the VM was driven until just before.
        uid: that process's user; -1: unknown.
    """

    vm: VmId
    address: str
    vm_mem_bytes: int
    pid: int | None
    quiet: bool = False
    uid: int = -1


@fact
class ProcessNotSeen(NamedTuple):
    """The kernel does not let balloond list /proc/PID/fd of a VMM's process: that takes the same
    user, or CAP_SYS_PTRACE. So balloond sees neither devices that are assigned to the VM (VFIO),
    nor the VM's memory file, nor how much the process reads from disks.

    Attributes:
        pid: the process.
        quiet: the VM was driven until just before.
    """

    vm: VmId
    pid: int
    quiet: bool = False


@fact
class VmLost(NamedTuple):
    """A driven VM is gone, or its VMM cannot be used any more.

    Attributes:
        fault: why.
        detail: the VMM's or the kernel's own words; "" where it has none.
        quiet: the VM was driven for a moment only, and was lost for the same reason the time
            before.
    """

    vm: VmId
    fault: Fault
    detail: str = ""
    quiet: bool = False


@fact
class VmLetGo(NamedTuple):
    """balloond no longer drives the balloon of a VM that the configuration neither names nor
    discovers any more. Its memory was given back before, as far as its guest took it."""

    vm: VmId


@fact
class VmmRefuses(NamedTuple):
    """A VMM refuses a call, and its VM's balloon stays as it is.

    Attributes:
        detail: the VMM's own words.
        quiet: the VMM refused a call before with the same words.
    """

    vm: VmId
    detail: str
    quiet: bool = False


@fact
class NoDriverYet(NamedTuple):
    """No balloon driver listens in the guest: it boots, was reset, or has none."""

    vm: VmId


@fact
class BaseFound(NamedTuple):
    """A VM has a balloon that was there before balloond; balloond leaves it as it is.

    Attributes:
        base_bytes: that balloon's size.
    """

    vm: VmId
    base_bytes: int


@fact
class Refilled(NamedTuple):
    """A VMM has read all of the guest's memory (migration, snapshot), which allocated anew what
    the balloon had freed: the balloon is given back, and taken again in steps.

    Attributes:
        refilled_bytes: how much more the VM's memory occupies than its size less its balloon.
    """

    vm: VmId
    refilled_bytes: int


@fact
class GivenBackLater(NamedTuple):
    """A paused guest takes its memory back when it runs again: its VMM has been told the target.

    Attributes:
        left_bytes: what is left in its balloon until then.
    """

    vm: VmId
    left_bytes: int


@fact
class BasesNotStored(NamedTuple):
    """The VMs' bases (the balloons that they had before balloond) cannot be stored for another
    balloond.

    Attributes:
        error: the kernel's text.
    """

    error: str


@fact
class BasesPathTaken(NamedTuple):
    """At the path where the VMs' bases (the balloons that they had before balloond) are to be
    stored there is something else than a regular file.

    Attributes:
        path: the path.
    """

    path: str


@fact
class SocketIgnored(NamedTuple):
    """A path that a pattern of ``[discover]`` names is no socket.

    Attributes:
        path: the path.
    """

    path: str
    quiet: bool = True


@fact
class DirectoryHangs(NamedTuple):
    """A directory that a pattern of ``[discover]`` leads to cannot be listed in time, or a name
    in it cannot be looked up; balloond tries again.

    Attributes:
        path: the directory.
    """

    path: str


@fact
class DirectoryNotListed(NamedTuple):
    """The directory of a pattern of ``[discover]`` does not exist or cannot be listed, so no VM is
    found there. For ``--check`` only: a running balloond looks there again and again.

    Attributes:
        path: the directory.
        why: the kernel's words.
    """

    path: str
    why: str


@fact
class DomainsNotFound(NamedTuple):
    """The domains of a libvirt connection cannot be listed just now; balloond tries again.

    Attributes:
        uri: the connection's URI.
        fault: why.
        detail: libvirt's own words; "" where it has none.
        quiet: the last attempt failed for the same reason.
    """

    uri: str
    fault: Fault
    detail: str = ""
    quiet: bool = False


@fact
class FinderFailed(NamedTuple):
    """Looking for a VM raised an unexpected error: a bug.

    Attributes:
        name: the VM's name.
        error: the exception's class and text.
    """

    name: str
    error: str


DrivenEvent = (
    VmNotDriven
    | VmNotSought
    | VmNotWanted
    | VmDriven
    | ProcessNotSeen
    | VmLost
    | VmLetGo
    | VmmRefuses
    | NoDriverYet
    | BaseFound
    | Refilled
    | GivenBackLater
    | BasesNotStored
    | BasesPathTaken
    | SocketIgnored
    | DirectoryHangs
    | DirectoryNotListed
    | DomainsNotFound
    | FinderFailed
)
"""The union of all events about driven VMs."""
