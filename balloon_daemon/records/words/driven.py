"""The log's sentences for events about driven VMs. Pure."""

from typing import assert_never

from balloon_daemon.events import (
    BaseFound,
    BasesNotStored,
    BasesPathTaken,
    DirectoryHangs,
    DirectoryNotListed,
    DomainsNotFound,
    DrivenEvent,
    Fault,
    FinderFailed,
    GivenBackLater,
    NoDriverYet,
    ProcessNotSeen,
    Refilled,
    SocketIgnored,
    VmDriven,
    VmLetGo,
    VmLost,
    VmmRefuses,
    VmNotDriven,
    VmNotSought,
    VmNotWanted,
)
from balloon_daemon.records.line import Level, unless
from balloon_daemon.units import format_size

_BASES_NOT_STORED = "cannot store which balloons were there before balloond"
_AFTER_A_CRASH = "after a crash the next balloond would not give back what this one has taken"
_WHY_IT_HANGS = (
    ": the file system does not answer, or another user keeps a directory on the way busy; use a "
    "directory that only the VM's user may list"
)

_NOT_DRIVEN = {
    Fault.NOT_THERE: (Level.INFO, "nobody listens there; waiting for the VM"),
    Fault.NO_VM: (Level.INFO, "no such VM runs there; waiting for it"),
    Fault.NO_SIZE: (
        Level.WARNING,
        "how much memory the VM has cannot be seen, and its guest has not said it yet; run "
        "balloond as root or as the VM's user",
    ),
    Fault.NO_PERMISSION: (
        Level.ERROR,
        "balloond may not connect; run it as root or as the VM's user",
    ),
    Fault.NOT_A_SOCKET: (Level.ERROR, "this is no socket of a VMM; correct the address"),
    Fault.HELD: (
        Level.ERROR,
        "another program holds the VMM's only connection; give balloond a monitor of its own, or "
        "drive the VM by way of that program",
    ),
    Fault.HANGS: (Level.ERROR, "the VMM does not answer"),
    Fault.PATH_HANGS: (
        Level.ERROR,
        f"looking the address up takes too long{_WHY_IT_HANGS}",
    ),
    Fault.NONSENSE: (Level.ERROR, "the VMM's answer makes no sense"),
    Fault.GONE: (Level.INFO, "the VMM closes the connection"),
    Fault.NO_BALLOON: (Level.ERROR, "the VM has no balloon device; give it one"),
    Fault.HUGETLB: (
        Level.ERROR,
        "the VM's memory is in huge pages (hugetlbfs), of which a balloon frees nothing; give it "
        "memory of small pages",
    ),
    Fault.PINNED: (
        Level.ERROR,
        "a host device is assigned to the VM (VFIO), which pins its memory: a balloon frees "
        "nothing",
    ),
    Fault.OWN_DEVICE: (Level.ERROR, "the VM's balloon is driven in another way already"),
    Fault.REFUSED: (Level.ERROR, "the VMM refuses"),
    Fault.NO_FDS: (
        Level.ERROR,
        "balloond may open no more files; allow more (ulimit -n, LimitNOFILE=)",
    ),
    Fault.NO_LIBRARY: (
        Level.ERROR,
        "libvirt's library for Python is not installed; install the package python3-libvirt",
    ),
}
"""For each fault the level and the sentence about a VM that is not driven because of it."""


def said_of_driven(event: DrivenEvent) -> tuple[Level, str] | None:
    """The level and the sentence of an event; None where the log has no line for it."""
    match event:
        case VmNotDriven(name, address, fault, detail, quiet):
            level, why = _NOT_DRIVEN[fault]
            return Level.DEBUG if quiet else level, f"{name}: {address}: {why}{_quoted(detail)}"
        case VmNotSought(name, quiet):
            return unless(quiet), f"{name}: its socket or domain is gone; not looked for any more"
        case VmNotWanted(name):
            message = (
                "the configuration has it no more: it gets its memory back, and is left alone"
            )
            return Level.INFO, f"{name}: {message}"
        case VmDriven(_, address, vm_mem_bytes, _, quiet):
            size = format_size(vm_mem_bytes)
            return unless(quiet), f"VM of {size}, driven by way of {address}"
        case ProcessNotSeen(_, pid, quiet):
            message = (
                f"its VMM's process {pid} may not be looked at: an assigned device (VFIO), for "
                "which a balloon frees nothing, would not be seen, nor are disk reads; run "
                "balloond as root or as the VM's user, or give its service CAP_SYS_PTRACE"
            )
            return Level.DEBUG if quiet else Level.WARNING, message
        case VmLetGo():
            return Level.INFO, "is driven no more"
        case VmLost(_, fault, detail, quiet):
            if fault is Fault.GONE:
                message = "the VMM has closed the connection, or the VM has ended"
                return unless(quiet), message + _quoted(detail)
            level, why = _NOT_DRIVEN[fault]
            return Level.DEBUG if quiet else level, f"{why}; not driven for now{_quoted(detail)}"
        case VmmRefuses(_, detail, quiet):
            message = f"the VMM refuses, and the balloon stays as it is{_quoted(detail)}"
            return Level.DEBUG if quiet else Level.WARNING, message
        case NoDriverYet():
            return Level.INFO, "no balloon driver listens in the guest; waiting for one"
        case BaseFound(_, base_bytes):
            size = format_size(base_bytes)
            return Level.INFO, f"has a balloon of {size} that is not balloond's, and keeps it"
        case Refilled(_, refilled_bytes):
            message = (
                f"its VMM has read all of its memory (migration, snapshot): "
                f"{format_size(refilled_bytes)} that its balloon had freed occupy memory again; "
                "giving the balloon back, to take it again in steps"
            )
            return Level.WARNING, message
        case GivenBackLater(_, left_bytes):
            size = format_size(left_bytes)
            return Level.INFO, f"is paused or suspended, and takes {size} back when it goes on"
        case BasesNotStored(error):
            return Level.WARNING, f"{_BASES_NOT_STORED}: {error}; {_AFTER_A_CRASH}"
        case BasesPathTaken(path):
            taken = f"{path} is no regular file: remove it"
            return Level.WARNING, f"{_BASES_NOT_STORED}, as {taken}; {_AFTER_A_CRASH}"
        case SocketIgnored(path):
            return Level.DEBUG, f"{path} is no socket; ignored"
        case DirectoryHangs(path):
            message = "new VMs are not found there: looking a name up takes too long"
            return Level.ERROR, f"{path}: {message}{_WHY_IT_HANGS}"
        case DirectoryNotListed(path, why):
            message = "make it, and let balloond's user list it, for VMs to be found there"
            return Level.WARNING, f"{path}: {why}; {message}"
        case DomainsNotFound(uri, fault, detail, quiet):
            level, why = _NOT_DRIVEN[fault]
            return Level.DEBUG if quiet else level, f"domains of {uri}: {why}{_quoted(detail)}"
        case FinderFailed(name, error):
            return Level.ERROR, f"{name}: unexpected error in balloond: {error}; trying again"
        case _:
            assert_never(event)


def _quoted(detail: str) -> str:
    return f" ({detail})" if detail else ""
