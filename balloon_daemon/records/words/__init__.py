"""The log's text for each event: its level, its event word, its sentence and its fields.

Pure. All of the daemon's sentences about events are in this folder.
"""

import re
from enum import Enum
from functools import cache

from balloon_daemon.events import (
    DaemonEvent,
    Decided,
    DeviceEvent,
    DeviceReady,
    DrivenEvent,
    Event,
    GuestInNeed,
    GuestStats,
    MemoryEvent,
    MemoryKnown,
    PolicyEvent,
    ProtectionEvent,
    SteeringEvent,
    Stepped,
    Surveyed,
    TraceBegun,
    VmFound,
)
from balloon_daemon.records.line import Level, Line
from balloon_daemon.records.words.daemon import said_of_daemon
from balloon_daemon.records.words.devices import said_of_device
from balloon_daemon.records.words.driven import said_of_driven
from balloon_daemon.records.words.memory import page_kinds, said_of_memory
from balloon_daemon.records.words.protection import said_of_protection
from balloon_daemon.records.words.steering import said_of_steering
from balloon_daemon.records.words.vms import decision_fields, said_of_vm


def worded(event: Event) -> Line | None:
    """The log line of an event; None where the log has no line for it."""
    said = _said(event)
    if said is None:
        return None
    level, message = said
    return Line(level, word_of(type(event).__name__), message, _fields(event))


def is_debug(event: Event) -> bool:
    """Whether an event's line is for debugging only; much cheaper than wording the event."""
    return isinstance(event, _DEBUG) or getattr(event, "quiet", False)


_DEBUG = (DeviceReady, GuestStats, Stepped, Surveyed, TraceBegun, VmFound)


def _said(event: Event) -> tuple[Level, str] | None:
    if isinstance(event, DeviceEvent):
        return said_of_device(event)
    if isinstance(event, DaemonEvent):
        return said_of_daemon(event)
    if isinstance(event, DrivenEvent):
        return said_of_driven(event)
    if isinstance(event, PolicyEvent):
        return None  # for the trace alone
    if isinstance(event, ProtectionEvent):
        return said_of_protection(event)
    if isinstance(event, SteeringEvent):
        return said_of_steering(event)
    return said_of_memory(event) if isinstance(event, MemoryEvent) else said_of_vm(event)


@cache
def word_of(name: str) -> str:
    """The event word of a class by its name: ``device-died`` for ``DeviceDied``."""
    return re.sub("(?<=[a-z])(?=[A-Z])", "-", name).lower()


def _fields(event: Event) -> dict[str, object]:
    """An event's own fields by their names, without empty ones."""
    match event:
        case GuestStats(vm, values):
            return {"vm": str(vm), **{f"stat_{name}": value for name, value in values}}
        case Decided(vm, decision):
            return {"vm": str(vm), **decision_fields(decision)}
        case GuestInNeed(vm, signs):
            words = tuple(sign.value for sign in signs)
            return event._asdict() | {"vm": str(vm), "signs": words}
        case MemoryKnown(vm, size_bytes, kinds):
            return {"vm": str(vm), "size_bytes": size_bytes, "pages": page_kinds(kinds)}
    named: dict[str, object] = {}
    for name, value in event._asdict().items():
        if isinstance(value, Enum):
            named[name] = value.value if isinstance(value.value, str) else value.name.lower()
        elif name == "vm":
            named |= {} if value is None else {"vm": str(value)}
        elif name != "quiet" and value is not None and value != "":
            named[name] = value
    return named
