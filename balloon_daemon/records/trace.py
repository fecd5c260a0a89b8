"""A trace: everything that the host's policy was told, one JSON object a line. Pure.

A daemon writes it (``recorder``), ``balloonctl simulate`` reads it. With the same events at the
same times, the same random draws and the same objections of drivers, ``HostPolicy`` decides the
same again. So times and draws are written with all their digits.

The first line is the header: the version, when the recording began, and the policy's numbers. Each
further line is an ``Entry``. ``docs/simulate.md`` lists its keys.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple, TypeVar, assert_never

from balloon_daemon.errors import BalloondError, ConfigError
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
    Ran,
    Removed,
    Resized,
    Restored,
    Sampled,
    Seen,
    Woke,
)
from balloon_daemon.sizing.need import Figures
from balloon_daemon.sizing.terms import Terms
from balloon_daemon.sizing.vm_settings import Profile, VmSettings
from balloon_daemon.units import VmId

VERSION = 1
"""The version of the format; a reader refuses every other."""

BEGINNING = b'{"balloond_trace":'
"""The first bytes of a trace of any version."""

MOST_NUMBER = 1 << 64

T = TypeVar("T")


class TraceError(BalloondError):
    """A trace, or a line of one, that no balloond of this version has written."""


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
        case _:
            return _encoded_of_vm(event)


def _encoded_of_vm(
    event: Added | Restored | Resized | Removed | Moved | Sampled | Ran | Measured | Asked,
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
        TraceError: the line is no header, or a header of another version.
    """
    if not line.startswith(BEGINNING):
        raise TraceError("is no trace of balloond's; record one with balloond --record FILE")
    content = _Content(line)
    version = content.take("balloond_trace", _integer)
    if version != VERSION:
        raise TraceError(
            f"is a trace of version {version}, and this balloonctl reads {VERSION}; "
            "read it with the balloonctl of the balloond that wrote it"
        )
    began_s = content.take("began_s", _number)
    settings = content.take("settings", _settings)
    content.end()
    return Header(began_s, settings)


class Decoder:
    """Reads entries, one after another; knows the VMs that were added."""

    def __init__(self) -> None:
        self._vms: dict[int, VmId] = {}

    def entry(self, line: bytes) -> Entry:
        """Reads one line.

        Raises:
            TraceError: the line is no entry.
        """
        content = _Content(line)
        at_s = content.take("t", _number)
        event = self._event(content.take("event", _text), content)
        entry = Entry(
            at_s,
            event,
            content.take("draws", _draws, ()),
            content.take("objections", self._objections, {}),
            content.take("decided", self._decided, ()),
        )
        content.end()
        if isinstance(event, Removed):
            del self._vms[event.vm.number]
        return entry

    def _event(self, word: str, content: "_Content") -> Recorded:
        match word:
            case "looked":
                return Looked(_seen(content))
            case "woke":
                return Woke(_seen(content))
            case "read":
                return Read(_seen(content))
            case "halted":
                return Halted()
            case "lost":
                return Lost(content.take("entries", _integer))
        number = content.take("vm", _integer)
        if word in ("added", "restored"):
            self._vms[number] = VmId(number, content.take("name", _text))
        vm = self._vm(number)
        match word:
            case "added":
                memory, balloon, terms = _size(content)
                return Added(vm, memory, balloon, terms)
            case "restored":
                memory, balloon, terms = _size(content)
                state = PolicyState(
                    content.take("level", _integer),
                    content.take("recheck_at_s", _or_none(_number)),
                    content.take("release_at_s", _or_none(_number)),
                )
                return Restored(vm, memory, state, balloon, terms)
            case "resized":
                return Resized(vm, content.take("memory", _integer))
            case "removed":
                return Removed(vm)
            case "moved":
                return Moved(vm, content.take("balloon", _integer))
            case "sampled":
                at_s = content.take("at_s", _number)
                names = Figures._fields[1:]
                return Sampled(
                    vm, Figures(at_s, *(content.take(n, _integer, None) for n in names))
                )
            case "ran":
                return Ran(vm, content.take("runs", _truth))
            case "asked":
                hold_s = content.take("hold_s", _or_none(_number))
                return Asked(vm, content.take("balloon", _integer), hold_s)
            case "measured":
                return Measured(vm, content.take("held", _integer))
            case _:
                raise TraceError(f"there is no such event: {word[:40]!r}")

    def _vm(self, number: int) -> VmId:
        vm = self._vms.get(number)
        if vm is None:
            raise TraceError(f"vm: no line above has added a VM {number}")
        return vm

    def _objections(self, value: object) -> dict[VmId, Reason]:
        return dict((self._vm(_integer(vm)), _reason(why)) for vm, why in _rows(value, 2))

    def _decided(self, value: object) -> tuple[Decided, ...]:
        return tuple(
            Decided(self._vm(_integer(vm)), _reason(why), _integer(level), _integer(target))
            for vm, why, level, target in _rows(value, 4)
        )


class _Content:
    """One line's object, whose keys are taken one by one."""

    def __init__(self, line: bytes) -> None:
        try:
            self.left = json.loads(line)
        except (ValueError, RecursionError):
            raise TraceError("is no JSON") from None
        if not isinstance(self.left, dict):
            raise TraceError("is no object")

    def take(self, key: str, parse: Callable[[Any], T], *default: T) -> T:
        """Takes a key's value. Raises TraceError: the value is wrong, or missing without a
        default."""
        if key not in self.left:
            if default:
                return default[0]
            raise TraceError(f"{key}: is missing")
        try:
            return parse(self.left.pop(key))
        except TraceError as err:
            raise TraceError(f"{key}: {err}") from None

    def end(self) -> None:
        """Raises TraceError: a key was not taken."""
        for key in self.left:
            raise TraceError(f"there is no such key here: {key[:40]!r}")


def _number(value: object) -> float:
    # A comparison with NaN is false, and so NaN is refused too.
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not 0 <= value < MOST_NUMBER
    ):
        raise TraceError("is no number of 0 or more")
    return value


def _integer(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < MOST_NUMBER:
        raise TraceError("is no whole number of 0 or more")
    return value


def _signed(value: object) -> int:
    return -_integer(-value) if isinstance(value, int) and value < 0 else _integer(value)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TraceError("is no text")
    return value


def _truth(value: object) -> bool:
    if not isinstance(value, bool):
        raise TraceError("is neither true nor false")
    return value


def _or_none(parse: Callable[[object], T]) -> Callable[[object], T | None]:
    return lambda value: None if value is None else parse(value)


def _rows(value: object, width: int) -> list[list[object]]:
    if not isinstance(value, list):
        raise TraceError("is no list")
    if not all(isinstance(row, list) and len(row) == width for row in value):
        raise TraceError(f"is no list of lists of {width}")
    return value


def _draws(value: object) -> tuple[float, ...]:
    if not isinstance(value, list):
        raise TraceError("is no list")
    draws = tuple(_number(draw) for draw in value)
    if any(draw >= 1 for draw in draws):
        raise TraceError("has a number of 1 or more")
    return draws


def _reason(value: object) -> Reason:
    try:
        return Reason(value)
    except ValueError:
        raise TraceError("is no reason of this balloond's") from None


def _profile(value: object) -> Profile:
    try:
        return Profile(value)
    except ValueError:
        raise TraceError("is no profile of this balloond's") from None


def _settings(value: object) -> PolicySettings:
    names = [field.name for field in fields(PolicySettings)]
    if not isinstance(value, dict) or sorted(value) != sorted(names):
        raise TraceError(f"has not the keys {', '.join(names)}")
    steps = _integer(value["steps"])
    try:
        return PolicySettings(steps, *(_number(value[name]) for name in names[1:]))
    except ConfigError as err:
        raise TraceError(str(err)) from None


def _seen(content: _Content) -> Seen:
    if content.take("unknown", _truth, False):
        return None
    if (why := content.take("never_low", _or_none(_text), None)) is not None:
        return NeverLow(why)
    available, margin = content.take("available", _signed), content.take("margin", _integer)
    return Reading(available, margin, content.take("within", _text, ""))


def _size(content: _Content) -> tuple[int, int, Terms]:
    settings = VmSettings(
        content.take("floor", _or_none(_integer)),
        content.take("ceiling", _or_none(_integer)),
        content.take("priority", _signed),
        content.take("profile", _profile),
    )
    stats, deflates = content.take("sends_stats", _truth), content.take("deflates_on_oom", _truth)
    memory, balloon = content.take("memory", _integer), content.take("balloon", _integer)
    return memory, balloon, Terms(settings, stats, deflates)
