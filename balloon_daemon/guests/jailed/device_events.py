"""Turns a device's exit code and reports into parts of events."""

import signal

from balloon_daemon.device.spec import EXIT_INTERNAL_ERROR
from balloon_daemon.errors import NO_HEAD, Rule
from balloon_daemon.events import Death, GuestFault, HostFault
from balloon_daemon.seccomp.filter import syscall_name
from balloon_daemon.tube.messages import Fault, FaultKind
from balloon_daemon.units import VmId
from balloon_daemon.virtio.balloon import StatTag


def cause_of_death(code: int, number: int | None) -> tuple[Death, str]:
    """The kind of a device's death, and the system call or signal that caused it.

    Args:
        code: the exit status, or a negative signal number.
        number: the number of the system call for which the seccomp filter killed the device; None:
            unknown.
    """
    if code == -signal.SIGSYS:
        return Death.FILTER, "" if number is None else syscall_name(number)
    if code < 0:
        # Python's ``signal.Signals`` has no names for the real-time signals between SIGRTMIN and
        # SIGRTMAX.
        known = -code in set(signal.Signals)
        return Death.SIGNAL, signal.Signals(-code).name if known else f"signal {-code}"
    return (Death.FAILED if code == EXIT_INTERNAL_ERROR else Death.STATUS), ""


def fault_event(vm: VmId, fault: Fault, queue: str, suppressed: int) -> GuestFault | HostFault:
    """The event for a fault that a device reported, of its guest or of the host.

    Args:
        vm: the device's VM.
        fault: the report.
        queue: the name of the report's queue.
        suppressed: faults that the controller left out; the device's own count is added.
    """
    suppressed += fault.suppressed
    if fault.kind is FaultKind.HOST:
        return HostFault(vm, fault.detail, fault.code, suppressed)
    stops = fault.kind is FaultKind.RING
    head = NO_HEAD if stops else fault.head
    return GuestFault(vm, queue, Rule(fault.code), fault.detail, head, stops, suppressed)


def stat_name(tag: int) -> str:
    """A statistic's name in the specification in lower case, or the number of an unknown tag."""
    return StatTag(tag).name.lower() if tag in list(StatTag) else str(tag)
