"""Reads the lines of a trace (``trace``). Pure."""

import json
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

from balloon_daemon.errors import BalloondError, ConfigError
from balloon_daemon.records.trace import (
    BEGINNING,
    VERSION,
    Decided,
    Entry,
    Header,
    Lost,
    Read,
    Recorded,
)
from balloon_daemon.sizing.balloon_policy import PolicySettings, PolicyState
from balloon_daemon.sizing.decision import NeverLow, Reading, Reason
from balloon_daemon.sizing.guard import WAITS, Lasting
from balloon_daemon.sizing.host_events import (
    Added,
    Asked,
    Found,
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

MOST_NUMBER = 1 << 64

T = TypeVar("T")


class TraceError(BalloondError):
    """A trace, or a line of one, that no balloond of this version has written."""


def decode_header(line: bytes) -> Header:
    """Reads the first line.

    Raises:
        TraceError: it is none, or of another version.
    """
    if not line.startswith(BEGINNING):
        raise TraceError(
            "is no trace of balloond's; record one with balloonctl record, or balloond --record "
            "FILE"
        )
    content = _Content.of_line(line)
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
            TraceError: it is no entry.
        """
        content = _Content.of_line(line)
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
        if word in ("added", "restored", "found"):
            self._vms[number] = VmId(number, content.take("name", _text))
        vm = self._vm(number)
        match word:
            case "added":
                memory, balloon, terms = _size(content)
                return Added(vm, memory, balloon, terms)
            case "restored":
                memory, balloon, terms = _size(content)
                return Restored(vm, memory, _state(content), balloon, terms)
            case "found":
                memory, balloon, terms = _size(content)
                return Found(
                    vm,
                    memory,
                    _state(content),
                    balloon,
                    terms,
                    content.take("target", _integer),
                    content.take("held_by", _or_none(_reason)),
                    content.take("guard", _or_none(_lasting)),
                    content.take("look_at_s", _or_none(_number)),
                )
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
    """One object, whose keys are taken one by one: a line, or a value in it."""

    def __init__(self, value: object) -> None:
        if not isinstance(value, dict):
            raise TraceError("is no object")
        self.left = value

    @classmethod
    def of_line(cls, line: bytes) -> "_Content":
        """A line's object."""
        try:
            return cls(json.loads(line))
        except (ValueError, RecursionError):
            raise TraceError("is no JSON") from None

    def take(self, key: str, parse: Callable[[Any], T], *default: T) -> T:
        """Takes a key's value. Raises TraceError: it is wrong, or missing without a default."""
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


def _state(content: _Content) -> PolicyState:
    return PolicyState(
        content.take("level", _integer),
        content.take("recheck_at_s", _or_none(_number)),
        content.take("release_at_s", _or_none(_number)),
    )


def _lasting(value: object) -> Lasting:
    content = _Content(value)
    lasting = Lasting(
        content.take("waits", _waits),
        content.take("need_seen_s", _or_none(_number)),
        content.take("left", _or_none(_reason)),
        content.take("bases", _bases),
        content.take("missing_bytes", _integer),
    )
    content.end()
    return lasting


def _waits(value: object) -> tuple[tuple[Reason, float, float], ...]:
    waits = tuple(
        (_reason(why), _number(until_s), _number(length_s))
        for why, until_s, length_s in _rows(value, 3)
    )
    if any(reason not in WAITS for reason, _, _ in waits):
        raise TraceError("has a reason for which there is no wait")
    return waits


def _bases(value: object) -> tuple[float, float]:
    ((disk, faults),) = _rows([value], 2)
    return _number(disk), _number(faults)


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
