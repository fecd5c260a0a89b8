"""Reads the lines of a trace (``trace``). Pure."""

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
from balloon_daemon.records.trace_values import (
    Content,
    TraceError,
    list_of,
    or_none,
    parsed_began,
    parsed_clock,
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
    taken_vm_settings,
)
from balloon_daemon.sizing.balloon_policy import PolicyState
from balloon_daemon.sizing.decision import Reason
from balloon_daemon.sizing.guard import WAITS, Lasting
from balloon_daemon.sizing.host_events import (
    Added,
    Asked,
    Found,
    Halted,
    Looked,
    Measured,
    Moved,
    Paused,
    Ran,
    Removed,
    Reserved,
    Resized,
    Restored,
    Resumed,
    Sampled,
    SettingsChanged,
    Unreserved,
    Wanted,
    Withdrawn,
    Woke,
)
from balloon_daemon.sizing.need import Figures
from balloon_daemon.units import VmId


def decode_header(line: bytes) -> Header:
    """Reads the first line.

    Raises:
        TraceError: the line is no trace's header, or is of another version.
    """
    if not line.startswith(BEGINNING):
        raise TraceError(
            "is no trace of balloond's; record one with balloonctl record, or balloond --record "
            "FILE"
        )
    content = Content.of_line(line)
    version = content.take("balloond_trace", parsed_integer)
    if version != VERSION:
        raise TraceError(
            f"is a trace of version {version}, and this balloonctl reads {VERSION}; "
            "read it with the balloonctl of the balloond that wrote it"
        )
    began_s = content.take("began_s", parsed_began)
    settings = content.take("settings", parsed_settings)
    content.end()
    return Header(began_s, settings)


class Decoder:
    """Reads a trace's entries, one after another. Remembers the VMs that were added and not
    removed: an entry about any other VM is a mistake."""

    def __init__(self) -> None:
        self._vms: dict[int, VmId] = {}

    def entry(self, line: bytes) -> Entry:
        """Reads one line.

        Raises:
            TraceError: it is no entry.
        """
        content = Content.of_line(line)
        at_s = content.take("t", parsed_clock)
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
                vms, for_s = (
                    content.take("vms", self._listed),
                    content.take("for_s", parsed_number),
                )
                return Paused(vms, for_s)
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
        if word in ("added", "restored", "found"):
            self._vms[number] = VmId(number, content.take("name", parsed_text))
        vm = self._vm(number)
        match word:
            case "added":
                memory, balloon, terms = taken_size(content)
                return Added(vm, memory, balloon, terms)
            case "restored":
                memory, balloon, terms = taken_size(content)
                return Restored(vm, memory, _state(content), balloon, terms)
            case "found":
                memory, balloon, terms = taken_size(content)
                return Found(
                    vm,
                    memory,
                    _state(content),
                    balloon,
                    terms,
                    content.take("target", parsed_integer),
                    content.take("held_by", or_none(parsed_reason)),
                    content.take("guard", or_none(_lasting)),
                    content.take("look_at_s", or_none(parsed_number)),
                    content.take("patience", _patience),
                )
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
            case "settings-changed":
                return SettingsChanged(vm, taken_vm_settings(content))
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


def _state(content: Content) -> PolicyState:
    return PolicyState(
        content.take("level", parsed_integer),
        content.take("recheck_at_s", or_none(parsed_number)),
        content.take("release_at_s", or_none(parsed_number)),
    )


def _lasting(value: object) -> Lasting:
    content = Content(value)
    lasting = Lasting(
        content.take("waits", _waits),
        content.take("need_seen_s", or_none(parsed_number)),
        content.take("left", or_none(parsed_reason)),
        content.take("bases", _bases),
        content.take("missing_bytes", parsed_integer),
    )
    content.end()
    return lasting


def _waits(value: object) -> tuple[tuple[Reason, float, float], ...]:
    waits = tuple(
        (parsed_reason(why), parsed_number(until_s), parsed_number(length_s))
        for why, until_s, length_s in rows_of(value, 3)
    )
    if any(reason not in WAITS for reason, _, _ in waits):
        raise TraceError("has a reason for which there is no wait")
    return waits


def _bases(value: object) -> tuple[float, float]:
    ((disk, faults),) = rows_of([value], 2)
    return parsed_number(disk), parsed_number(faults)


def _patience(value: object) -> tuple[int, float | None, int]:
    ((waits_up, waited_at_s, waits_down),) = rows_of([value], 3)
    return (
        parsed_integer(waits_up),
        or_none(parsed_number)(waited_at_s),
        parsed_integer(waits_down),
    )
