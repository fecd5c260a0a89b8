"""What the log says of a device: how it ended, what it reported, what statistics are called."""

import signal

from balloon_daemon.device.spec import EXIT_INTERNAL_ERROR
from balloon_daemon.errors import GuestError, RingError, Rule
from balloon_daemon.seccomp.filter import syscall_name
from balloon_daemon.tube.messages import Fault, FaultKind
from balloon_daemon.virtio.balloon import StatTag


def cause(code: int, number: int | None) -> str:
    """An exit code in words, with the system call that a filter killed for."""
    if code == -signal.SIGSYS:
        name = "a forbidden system call" if number is None else f"{syscall_name(number)}()"
        return f"was killed by its seccomp policy for {name}"
    if code < 0:
        # Real-time signals have no names but the first and the last.
        known = -code in set(signal.Signals)
        return f"was killed by {signal.Signals(-code).name if known else f'signal {-code}'}"
    if code == EXIT_INTERNAL_ERROR:
        return "failed"
    return f"ended with status {code}"


def stat_name(tag: int) -> str:
    """A statistic's name in a log record; an unknown tag's is its number."""
    return f"stat_{StatTag(tag).name.lower()}" if tag in list(StatTag) else f"stat_{tag}"


def fault_words(fault: Fault, queue: str) -> str:
    """What a device reported of its guest's doing, or of the host's.

    Args:
        queue: the name of the queue that the report speaks of.
    """
    if fault.kind is FaultKind.HOST:
        return f"the kernel refused to free guest memory at {fault.detail:#x}: errno {fault.code}"
    if fault.kind is FaultKind.RING:
        return f"{RingError(queue, Rule(fault.code), fault.detail)}; the queue is stopped"
    return f"{GuestError(queue, fault.head, Rule(fault.code), fault.detail)}; dropped"
