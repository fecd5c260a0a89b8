"""The log's words: for each event its level, its event word, its sentence and its fields.

Pure. All of the daemon's prose about what happens is here.
"""

import re
from dataclasses import fields
from enum import Enum, IntEnum
from functools import cache
from typing import NamedTuple, assert_never

from balloon_daemon.errors import GuestError, RingError
from balloon_daemon.events import (
    Death,
    DeviceDied,
    DeviceDoesNotStop,
    DeviceHangs,
    DeviceLooks,
    DeviceNotForked,
    DeviceReady,
    DeviceSendsGarbage,
    DeviceStalled,
    DeviceStarted,
    DeviceTakesOrders,
    Event,
    GuestFault,
    GuestStats,
    HostFault,
    RingsUnknown,
)


class Level(IntEnum):
    """How much a line matters; the numbers are syslog(3)'s, as systemd's journal takes them."""

    ERROR = 3
    WARNING = 4
    INFO = 6
    DEBUG = 7


class Line(NamedTuple):
    """An event as the log has it.

    Attributes:
        level: how much it matters.
        word: the event's class, in small letters and hyphens.
        message: the sentence, without a VM's name.
        fields: for machines: numbers and names, by their field in JSON.
    """

    level: Level
    word: str
    message: str
    fields: dict[str, object]


def worded(event: Event) -> Line:
    """Puts an event into words."""
    level, message = _said(event)
    return Line(level, _kebab_case(type(event).__name__), message, _fields(event))


@cache
def _kebab_case(name: str) -> str:
    """The event word of a class by its name: ``device-died`` for ``DeviceDied``."""
    return re.sub("(?<=[a-z])(?=[A-Z])", "-", name).lower()


def _said(event: Event) -> tuple[Level, str]:
    match event:
        case DeviceStarted(_, pid, queues, quiet):
            return _unless(quiet), f"device {pid} serves {', '.join(queues)}"
        case DeviceLooks(_, pid, queues, quiet):
            return _unless(quiet), f"device {pid} looks at {', '.join(queues)}"
        case DeviceReady():
            return Level.DEBUG, "device is jailed and ready"
        case DeviceNotForked(_, error, suppressed):
            message = f"cannot fork a device: {error}; trying again"
            return Level.ERROR, message + _more(suppressed)
        case DeviceDied():
            return Level.ERROR, _death(event)
        case DeviceDoesNotStop():
            return Level.WARNING, "device does not stop, killing it"
        case DeviceHangs(_, pid):
            message = f"device {pid} was killed and does not end: the kernel holds it"
            return Level.ERROR, message
        case DeviceSendsGarbage(_, pid, found):
            message = f"device {pid} sends what no device sends: {found}; killing it"
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
            message = "where the rings stand now cannot be learned"
            return Level.ERROR, message + _more(suppressed)
        case GuestFault(_, queue, rule, found, _, True, suppressed):
            message = f"{RingError(queue, rule, found)}; the queue is stopped"
            return Level.ERROR, message + _more(suppressed)
        case GuestFault(_, queue, rule, found, head, _, suppressed):
            message = f"{GuestError(queue, head, rule, found)}; dropped"
            return Level.WARNING, message + _more(suppressed)
        case HostFault(_, addr, errno, suppressed):
            message = f"the kernel refused to free guest memory at {addr:#x}: errno {errno}"
            return Level.ERROR, message + _more(suppressed)
        case GuestStats():
            return Level.DEBUG, "the guest's statistics"
        case _:
            assert_never(event)


def _unless(quiet: bool) -> Level:
    return Level.DEBUG if quiet else Level.INFO


def _more(suppressed: int) -> str:
    return f" ({suppressed} more like it)" if suppressed else ""


def _death(event: DeviceDied) -> str:
    if event.deaths:
        deaths = f"the {event.deaths}th death within {event.within_s:.0f} s"
        then = f"{deaths}: this VM's balloon stops until its VMM reconnects"
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


def _fields(event: Event) -> dict[str, object]:
    """An event's own fields under their names, but for those that say nothing."""
    if isinstance(event, GuestStats):
        return {"vm": str(event.vm), **{f"stat_{name}": value for name, value in event.values}}
    named: dict[str, object] = {}
    for field in fields(event):
        value = getattr(event, field.name)
        if field.name == "vm":
            named["vm"] = str(value)
        elif field.name != "quiet" and value is not None and value != "":
            named[field.name] = value.value if isinstance(value, Enum) else value
    return named
