"""The log's sentences for events about devices. Pure."""

from errno import errorcode
from typing import assert_never

from balloon_daemon.errors import GuestError, RingError
from balloon_daemon.events import (
    Death,
    DeviceDied,
    DeviceDoesNotStop,
    DeviceEvent,
    DeviceHangs,
    DeviceLooks,
    DeviceNotForked,
    DeviceReady,
    DeviceSendsGarbage,
    DeviceStalled,
    DeviceStarted,
    DeviceTakesOrders,
    GuestFault,
    GuestStats,
    HostFault,
    ReportsNotFreed,
    RingsUnknown,
)
from balloon_daemon.records.line import Level, more, unless

_NOT_FREED = (
    "free pages that it reports are not taken from it; the balloon gives its memory back as ever"
)


def said_of_device(event: DeviceEvent) -> tuple[Level, str]:
    """The level and the sentence of an event."""
    match event:
        case DeviceStarted(_, pid, queues, quiet):
            return unless(quiet), f"device {pid} serves {', '.join(queues)}"
        case DeviceLooks(_, pid, queues, quiet):
            rings = ", ".join(queues)
            return unless(quiet), f"device {pid} only reads how far these rings are: {rings}"
        case ReportsNotFreed(_, None):
            message = (
                "the guest's driver has not said what its free pages must hold (poison_val): "
                f"{_NOT_FREED}"
            )
            return Level.INFO, message
        case ReportsNotFreed(_, poison_val):
            message = (
                f"the guest's kernel fills free pages with {poison_val:#x} and may look for that "
                f"later (page_poison=1): {_NOT_FREED}"
            )
            return Level.INFO, message
        case DeviceReady():
            return Level.DEBUG, "device is jailed and ready"
        case DeviceNotForked(_, error, suppressed):
            message = f"cannot fork a device: {error}; trying again"
            return Level.ERROR, message + more(suppressed)
        case DeviceDied():
            return Level.ERROR, _death(event)
        case DeviceDoesNotStop(_, pid):
            return Level.WARNING, f"device {pid} was told to stop and has not: killing it"
        case DeviceHangs(_, pid):
            message = f"device {pid} was killed and does not end: the kernel is still busy with it"
            return Level.ERROR, message
        case DeviceSendsGarbage(_, pid, found):
            message = (
                f"device {pid} sends what no device sends: {found}; its guest may have taken it "
                "over: killing it"
            )
            return Level.ERROR, message
        case DeviceStalled(_, pid):
            message = (
                f"device {pid} takes no orders: somebody has stopped it, or the host has no "
                "time for it; its VM gives nothing and gets nothing back meanwhile"
            )
            return Level.WARNING, message
        case DeviceTakesOrders(_, pid):
            return Level.INFO, f"device {pid} takes orders again"
        case RingsUnknown(_, suppressed):
            message = (
                "no device could read how far its rings are (used.idx): its VMM is told what was "
                "known last"
            )
            return Level.ERROR, message + more(suppressed)
        case GuestFault(_, queue, rule, found, _, True, suppressed):
            message = f"{RingError(queue, rule, found)}; the queue is stopped"
            return Level.ERROR, f"{message}, until the guest is restarted{more(suppressed)}"
        case GuestFault(_, queue, rule, found, head, _, suppressed):
            message = f"{GuestError(queue, head, rule, found)}; dropped"
            return Level.WARNING, message + more(suppressed)
        case HostFault(_, addr, errno, suppressed):
            name = errorcode.get(errno, f"errno {errno}")
            message = f"the kernel refused to free guest memory at {addr:#x} (MADV_REMOVE: {name})"
            return Level.ERROR, message + more(suppressed)
        case GuestStats():
            return Level.DEBUG, "the guest's statistics"
        case _:
            assert_never(event)


def _death(event: DeviceDied) -> str:
    if event.deaths:
        deaths = f"the {event.deaths}th death within {event.within_s:.0f} s"
        then = (
            f"{deaths}: this VM's balloon stops until its VMM reconnects (QEMU's: until the VM is "
            "started again)"
        )
    else:
        then = "forking another"
    said = f"{event.last_words}; " if event.last_words else ""
    return f"device {event.pid} {_cause(event)}; {said}{then}"


def _cause(event: DeviceDied) -> str:
    match event.death:
        case Death.FILTER:
            call = f"{event.by}()" if event.by else "a forbidden system call"
            return f"was killed by its seccomp policy for {call}"
        case Death.SIGNAL:
            return f"was killed by {event.by}"
        case Death.FAILED:
            return "failed"
        case Death.STATUS:
            return f"ended with status {event.exit_code}"
        case _:
            assert_never(event.death)
