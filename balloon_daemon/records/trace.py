"""A trace: each event that the sizing policy (``HostPolicy``) handled, a JSON object a line. Pure.

A daemon writes it (``recorder``), ``balloonctl simulate`` reads it (``trace_reader``). With the
same events at the same times, the same random draws and the same objections of drivers,
``HostPolicy`` decides the same again. So times and draws are written with all their digits.

The first line is the header: the version, when the recording began, and the numbers of ChromeOS's
balloon policy. Each further line is an ``Entry``. ``docs/simulate.md`` lists its keys.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import assert_never

from balloon_daemon.errors import ConfigError
from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.sizing.balloon_policy import PolicySettings
from balloon_daemon.sizing.decision import NeverLow, Reading, Reason
from balloon_daemon.sizing.host_events import (
    Added,
    Asked,
    Event,
    Found,
    Halted,
    Looked,
    Measured,
    Moved,
    Paused,
    Ran,
    Removed,
    Reported,
    Reserved,
    Resized,
    Restored,
    Resumed,
    Sampled,
    Seen,
    SettingsChanged,
    Unreserved,
    Wanted,
    Withdrawn,
    Woke,
)
from balloon_daemon.sizing.vm_settings import VmSettings
from balloon_daemon.units import VmId

VERSION = 1
"""The version of the format; a reader refuses every other."""

BEGINNING = b'{"balloond_trace":'
"""The first bytes of a trace of any version."""


class Header(NamedTuple):
    """The first line.

    Attributes:
        began_s: when the recording began, in seconds since the epoch.
        settings: the numbers of ChromeOS's balloon policy.
    """

    began_s: float
    settings: PolicySettings


class Read(NamedTuple):
    """The low-memory source was read only for the trace; the sizing policy did not get the
    reading."""

    seen: Seen


class Lost(NamedTuple):
    """Entries are missing here, because they could not be written in time.

    Attributes:
        entries: how many.
    """

    entries: int


Recorded = Event | Read | Lost | Found


class Decided(NamedTuple):
    """A decision of the sizing policy about a VM; recorded so that a replay can be compared with
    it.

    Attributes:
        vm: the VM.
        reason: why.
        level: the balloon's level afterwards, in steps of the policy.
        target_bytes: the VM's target afterwards.
    """

    vm: VmId
    reason: Reason
    level: int
    target_bytes: int


class Entry(NamedTuple):
    """One line.

    Attributes:
        at_s: the time that the policy was given, on the daemon's CLOCK_MONOTONIC.
        event: the event that the policy handled, or one that only a trace has: ``Read``, ``Lost``,
            ``Found``.
        draws: the random numbers that the policy drew in this step, in this order.
        objections: the VMs of which a driver said that they must not be asked for more.
        decided: the decisions of this step.
    """

    at_s: float
    event: Recorded
    draws: tuple[float, ...] = ()
    objections: Mapping[VmId, Reason] = {}
    decided: tuple[Decided, ...] = ()


@dataclass(slots=True)
class Trace:
    """A trace.

    Attributes:
        name: the file's name, for messages.
        header: its first line.
        entries: all other lines, in order; entry ``n`` is on line ``n + 2``.
        is_cut: whether the last line was left out, because it has no end.
    """

    name: str
    header: Header
    entries: list[Entry] = field(default_factory=list)
    is_cut: bool = False

    def mistake(self, index: int, why: str) -> ConfigError:
        """An error that names an entry's line."""
        return ConfigError(f"{self.name}:{index + 2}: {why}")


# --- writing ------------------------------------------------------------------------------------


def encode_header(header: Header) -> bytes:
    """The first line of a trace, with its newline."""
    settings = asdict(header.settings)
    return _line({"balloond_trace": VERSION, "began_s": header.began_s, "settings": settings})


def encode_entry(entry: Entry) -> bytes:
    """The line of an entry, with its newline."""
    content: dict[str, object] = {"t": entry.at_s, **_encoded(entry.event)}
    if entry.draws:
        content["draws"] = entry.draws
    if entry.objections:
        objections = entry.objections.items()
        content["objections"] = [(vm.number, reason.value) for vm, reason in objections]
    if entry.decided:
        content["decided"] = [
            (vm.number, reason.value, level, target) for vm, reason, level, target in entry.decided
        ]
    return _line(content)


def _line(content: dict[str, object]) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode() + b"\n"


def _encoded(event: Recorded) -> dict[str, object]:
    match event:
        case Looked(seen):
            return {"event": "looked", **_encoded_seen(seen)}
        case Woke(seen):
            return {"event": "woke", **_encoded_seen(seen)}
        case Read(seen):
            return {"event": "read", **_encoded_seen(seen)}
        case Halted():
            return {"event": "halted"}
        case Lost(entries):
            return {"event": "lost", "entries": entries}
        case Paused(vms, for_s):
            return {"event": "paused", "vms": [vm.number for vm in vms], "for_s": for_s}
        case Resumed(vms):
            return {"event": "resumed", "vms": [vm.number for vm in vms]}
        case Found():
            return _encoded_found(event)
        case Wanted():
            listed = [vm.number for vm in event.vms]
            return {"event": "wanted", **event._asdict(), "vms": listed}
        case Reserved():
            return {"event": "reserved", **event._asdict()}
        case Unreserved():
            return {"event": "unreserved"}
        case Withdrawn(ticket):
            return {"event": "withdrawn", "ticket": ticket}
        case _:
            return _encoded_of_vm(event)


def _encoded_of_vm(
    event: Added | Restored | Resized | Removed | Reported | Asked | SettingsChanged,
) -> dict[str, object]:
    vm = event.vm.number
    match event:
        case Added():
            content = {"event": "added", "vm": vm, "name": event.vm.name}
            return content | _encoded_size(event)
        case Restored():
            content = {"event": "restored", "vm": vm, "name": event.vm.name}
            return content | _encoded_size(event) | event.state._asdict()
        case Resized():
            return {"event": "resized", "vm": vm, "memory": event.vm_mem_bytes}
        case Removed():
            return {"event": "removed", "vm": vm}
        case Moved():
            return {"event": "moved", "vm": vm, "balloon": event.balloon_bytes}
        case Sampled():
            figures = event.figures._asdict().items()
            known = {name: value for name, value in figures if value is not None}
            return {"event": "sampled", "vm": vm, **known}
        case Ran():
            return {"event": "ran", "vm": vm, "runs": event.runs}
        case Measured():
            return {"event": "measured", "vm": vm, "held": event.held_bytes}
        case Asked(_, balloon_bytes, hold_s):
            return {"event": "asked", "vm": vm, "balloon": balloon_bytes, "hold_s": hold_s}
        case SettingsChanged(_, settings):
            return {"event": "settings-changed", "vm": vm, **_encoded_settings(settings)}
        case _:
            assert_never(event)


def _encoded_found(found: Found) -> dict[str, object]:
    lasting = found.lasting
    guard: dict[str, object] = {}
    if lasting is not None:
        guard = lasting._asdict() | {
            "waits": [(reason.value, *times) for reason, *times in lasting.waits],
            "left": None if lasting.left is None else lasting.left.value,
        }
    return {
        "event": "found",
        "vm": found.vm.number,
        "name": found.vm.name,
        **_encoded_size(found),
        **found.state._asdict(),
        "target": found.target_bytes,
        "held_by": None if found.held is None else found.held.value,
        "guard": guard or None,
        "look_at_s": found.look_at_s,
        "patience": found.patience,
    }


def _encoded_seen(seen: Seen) -> dict[str, object]:
    match seen:
        case Reading(available, margin, within):
            content: dict[str, object] = {"available": available, "margin": margin}
            return content | ({"within": within} if within else {})
        case NeverLow(why):
            return {"never_low": why}
        case None:
            return {"unknown": True}


def _encoded_size(event: Added | Restored | Found) -> dict[str, object]:
    terms = event.terms
    return {
        "memory": event.vm_mem_bytes,
        "balloon": event.balloon_bytes,
        **_encoded_settings(terms.settings),
        "sends_stats": terms.sends_stats,
        "deflates_on_oom": terms.deflates_on_oom,
    }


def _encoded_settings(settings: VmSettings) -> dict[str, object]:
    return {
        "floor": settings.floor_bytes,
        "ceiling": settings.ceiling_bytes,
        "priority": settings.priority,
        "profile": settings.profile.value,
    }
