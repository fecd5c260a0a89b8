"""What a device's exit code and reports say, as parts of events."""

import signal

from balloon_daemon.device.spec import EXIT_INTERNAL_ERROR
from balloon_daemon.errors import NO_HEAD, Rule
from balloon_daemon.events import Death, GuestFault, HostFault
from balloon_daemon.seccomp.filter import syscall_name
from balloon_daemon.tube.messages import Fault, FaultKind
from balloon_daemon.units import VmId
from balloon_daemon.virtio.balloon import StatTag


def cause_of_death(code: int, number: int | None) -> tuple[Death, str]:
    """What an exit code means, and which system call or signal ended the device.

    Args:
        code: the exit status, or a negative signal number.
        number: of the system call that a filter killed it for; None where nobody knows it.
    """
    if code == -signal.SIGSYS:
        return Death.FILTER, "" if number is None else syscall_name(number)
    if code < 0:
        # Real-time signals have no names but the first and the last.
        known = -code in set(signal.Signals)
        return Death.SIGNAL, signal.Signals(-code).name if known else f"signal {-code}"
    return (Death.FAILED if code == EXIT_INTERNAL_ERROR else Death.STATUS), ""


def fault_event(vm: VmId, fault: Fault, queue: str, suppressed: int) -> GuestFault | HostFault:
    """What a device reported of its guest's doing, or of the host's.

    Args:
        vm: whose device it is.
        fault: the report.
        queue: the name of the queue that the report speaks of.
        suppressed: faults that the controller left out; the device's own are added.
    """
    suppressed += fault.suppressed
    if fault.kind is FaultKind.HOST:
        return HostFault(vm, fault.detail, fault.code, suppressed)
    stops = fault.kind is FaultKind.RING
    head = NO_HEAD if stops else fault.head
    return GuestFault(vm, queue, Rule(fault.code), fault.detail, head, stops, suppressed)


def stat_name(tag: int) -> str:
    """A statistic's name in the specification, in small letters; an unknown tag's number."""
    return StatTag(tag).name.lower() if tag in list(StatTag) else str(tag)
