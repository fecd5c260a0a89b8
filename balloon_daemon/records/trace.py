"""A trace: everything that the host's policy was told, one JSON object a line. Pure.

A daemon writes it (``recorder``), ``balloonctl simulate`` reads it. With the same events at the
same times, the same random draws and the same objections of drivers, ``HostPolicy`` decides the
same again. So times and draws are written with all their digits.

The first line is the header: the version, when the recording began, and the policy's numbers. Each
further line is an ``Entry``. ``docs/simulate.md`` lists its keys.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import NamedTuple, assert_never

from balloon_daemon.errors import ConfigError
from balloon_daemon.records.trace_values import (
    Content,
    list_of,
    or_none,
    parsed_draws,
    parsed_integer,
    parsed_number,
    parsed_reason,
    parsed_settings,
    parsed_text,
    parsed_truth,
    rows_of,
    taken_seen,
    taken_size,
)
from balloon_daemon.records.trace_values import TraceError as TraceError
from balloon_daemon.sizing.balloon_policy import PolicySettings, PolicyState
from balloon_daemon.sizing.decision import NeverLow, Reading, Reason
from balloon_daemon.sizing.host_events import (
    Added,
    Asked,
    Event,
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
    Unreserved,
    Wanted,
    Withdrawn,
    Woke,
)
from balloon_daemon.sizing.need import Figures
from balloon_daemon.units import VmId

VERSION = 1
"""The version of the format; a reader refuses every other."""

BEGINNING = b'{"balloond_trace":'
"""The first bytes of a trace of any version."""


class Header(NamedTuple):
    """The first line.

    Attributes:
        began_s: when the recording began, in seconds since the epoch.
        settings: the policies' numbers.
    """

    began_s: float
    settings: PolicySettings


class Read(NamedTuple):
    """The source was read for the trace alone; the policy was not told."""

    seen: Seen


class Lost(NamedTuple):
    """Entries are missing here, because they could not be written in time.

    Attributes:
        entries: how many.
    """

    entries: int


Recorded = Event | Read | Lost


class Decided(NamedTuple):
    """What a VM's policy decided; recorded for comparison.

    Attributes:
        vm: the VM.
        reason: why.
        level: the policy's level afterwards.
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
        event: what the policy was told, or one of the two events that only a trace has.
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
        entries: all others, in order; entry ``n`` is on line ``n + 2``.
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
    event: Added | Restored | Resized | Removed | Reported | Asked,
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
        case _:
            assert_never(event)


def _encoded_seen(seen: Seen) -> dict[str, object]:
    match seen:
        case Reading(available, margin, within):
            content: dict[str, object] = {"available": available, "margin": margin}
            return content | ({"within": within} if within else {})
        case NeverLow(why):
            return {"never_low": why}
        case None:
            return {"unknown": True}


def _encoded_size(event: Added | Restored) -> dict[str, object]:
    terms, settings = event.terms, event.terms.settings
    return {
        "memory": event.vm_mem_bytes,
        "balloon": event.balloon_bytes,
        "floor": settings.floor_bytes,
        "ceiling": settings.ceiling_bytes,
        "priority": settings.priority,
        "profile": settings.profile.value,
        "sends_stats": terms.sends_stats,
        "deflates_on_oom": terms.deflates_on_oom,
    }


# --- reading ------------------------------------------------------------------------------------


def decode_header(line: bytes) -> Header:
    """Reads the first line.

    Raises:
        TraceError: it is none, or of another version.
    """
    if not line.startswith(BEGINNING):
        raise TraceError("is no trace of balloond's; record one with balloond --record FILE")
    content = Content(line)
    version = content.take("balloond_trace", parsed_integer)
    if version != VERSION:
        raise TraceError(
            f"is a trace of version {version}, and this balloonctl reads {VERSION}; "
            "read it with the balloonctl of the balloond that wrote it"
        )
    began_s = content.take("began_s", parsed_number)
    settings = content.take("settings", parsed_settings)
    content.end()
    return Header(began_s, settings)


class Decoder:
    """Reads entries, one after another; knows the VMs that were added."""

    def __init__(self) -> None:
        self._vms: dict[int, VmId] = {}

    def entry(self, line: bytes) -> Entry:
        """Reads one line.

        Raises:
            TraceError: it is no entry.
        """
        content = Content(line)
        at_s = content.take("t", parsed_number)
        event = self._event(content.take("event", parsed_text), content)
        entry = Entry(
            at_s,
            event,
            content.take("draws", parsed_draws, ()),
            content.take("objections", self._objections, {}),
            content.take("decided", self._decided, ()),
        )
        content.end()
        if isinstance(event, Removed):
            del self._vms[event.vm.number]
        return entry

    def _event(self, word: str, content: Content) -> Recorded:
        match word:
            case "looked":
                return Looked(taken_seen(content))
            case "woke":
                return Woke(taken_seen(content))
            case "read":
                return Read(taken_seen(content))
            case "halted":
                return Halted()
            case "lost":
                return Lost(content.take("entries", parsed_integer))
            case "paused":
                return Paused(
                    content.take("vms", self._listed), content.take("for_s", parsed_number)
                )
            case "resumed":
                return Resumed(content.take("vms", self._listed))
            case "wanted":
                return Wanted(
                    content.take("ticket", parsed_integer),
                    content.take("vms", self._listed),
                    content.take("size_bytes", parsed_integer),
                    content.take("within_s", parsed_number),
                    content.take("hold_s", parsed_number),
                )
            case "reserved":
                return Reserved(
                    content.take("ticket", parsed_integer),
                    content.take("size_bytes", parsed_integer),
                    content.take("within_s", parsed_number),
                    content.take("for_s", parsed_number),
                )
            case "unreserved":
                return Unreserved()
            case "withdrawn":
                return Withdrawn(content.take("ticket", parsed_integer))
        number = content.take("vm", parsed_integer)
        if word in ("added", "restored"):
            self._vms[number] = VmId(number, content.take("name", parsed_text))
        vm = self._vm(number)
        match word:
            case "added":
                memory, balloon, terms = taken_size(content)
                return Added(vm, memory, balloon, terms)
            case "restored":
                memory, balloon, terms = taken_size(content)
                state = PolicyState(
                    content.take("level", parsed_integer),
                    content.take("recheck_at_s", or_none(parsed_number)),
                    content.take("release_at_s", or_none(parsed_number)),
                )
                return Restored(vm, memory, state, balloon, terms)
            case "resized":
                return Resized(vm, content.take("memory", parsed_integer))
            case "removed":
                return Removed(vm)
            case "moved":
                return Moved(vm, content.take("balloon", parsed_integer))
            case "sampled":
                at_s = content.take("at_s", parsed_number)
                names = Figures._fields[1:]
                return Sampled(
                    vm, Figures(at_s, *(content.take(n, parsed_integer, None) for n in names))
                )
            case "ran":
                return Ran(vm, content.take("runs", parsed_truth))
            case "asked":
                hold_s = content.take("hold_s", or_none(parsed_number))
                return Asked(vm, content.take("balloon", parsed_integer), hold_s)
            case "measured":
                return Measured(vm, content.take("held", parsed_integer))
            case _:
                raise TraceError(f"there is no such event: {word[:40]!r}")

    def _vm(self, number: int) -> VmId:
        vm = self._vms.get(number)
        if vm is None:
            raise TraceError(f"vm: no line above has added a VM {number}")
        return vm

    def _listed(self, value: object) -> tuple[VmId, ...]:
        return tuple(self._vm(number) for number in list_of(parsed_integer, value))

    def _objections(self, value: object) -> dict[VmId, Reason]:
        return dict(
            (self._vm(parsed_integer(vm)), parsed_reason(why)) for vm, why in rows_of(value, 2)
        )

    def _decided(self, value: object) -> tuple[Decided, ...]:
        return tuple(
            Decided(
                self._vm(parsed_integer(vm)),
                parsed_reason(why),
                parsed_integer(level),
                parsed_integer(target),
            )
            for vm, why, level, target in rows_of(value, 4)
        )
