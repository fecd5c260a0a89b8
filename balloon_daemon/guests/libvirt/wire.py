"""What libvirt's client says, as typed values. Pure.

Lines of JSON, each an answer to a call or an event. The client runs libvirt's code, and passes on
figures from guests, so its lines are not trusted: a line is bounded (``process.MAX_LINE_BYTES``),
and its values must have the right type and be in range.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, NoReturn

from balloon_daemon.errors import printable
from balloon_daemon.events.driven import Fault
from balloon_daemon.guests.driven.control import ControlError
from balloon_daemon.guests.seam import GuestState, Stats

MAX_BYTES = 1 << 53
"""Larger numbers are refused: no VM has so much memory, and not every JSON parser keeps a larger
number exact."""

MAX_NAME = 256
MAX_DETAIL = 300

_FAULTS = {fault.value: fault for fault in Fault}

# virDomainState (libvirt-domain.h): nostate, running, blocked, paused, shutdown, shutoff, crashed,
# pmsuspended. A crashed domain that libvirt preserves has a QEMU whose virtual CPUs stand still.
_ENDED = {0, 5}
_STANDS_STILL = {3, 6, 7}
_MAX_STATE = 64

# virDomainRunningReason: restored, from a snapshot. libvirt says so until it pauses the domain.
_RUNNING, _RESTORED = 1, {3, 4}

_KIB, _COUNT = 1024, 1
_STATS = {
    "available": ("total_bytes", _KIB),
    "unused": ("free_bytes", _KIB),
    "usable": ("available_bytes", _KIB),
    "disk_caches": ("caches_bytes", _KIB),
    "swap_in": ("swap_in_bytes", _KIB),
    "swap_out": ("swap_out_bytes", _KIB),
    "major_fault": ("major_faults", _COUNT),
    "minor_fault": ("minor_faults", _COUNT),
    "hugetlb_pgalloc": ("hugetlb_allocations", _COUNT),
    "hugetlb_pgfail": ("hugetlb_failures", _COUNT),
}
"""By libvirt's name of a statistic: the field of ``Stats``, and how many of the field's units one
of libvirt's is."""


class Event(Enum):
    """What libvirt reports of a domain; the value is the word on the wire."""

    STARTED = "started"
    STOPPED = "stopped"
    RESET = "reset"
    BALLOON = "balloon"
    """The guest's driver has changed its balloon's size."""

    REFILLED = "refilled"
    """All of the guest's memory may have been read, by a save, a snapshot or a migration."""

    CHANGED = "changed"


_EVENTS = {event.value: event for event in Event}


@dataclass(frozen=True, slots=True)
class Domain:
    """A domain's name, and the id that only this domain ever has."""

    name: str
    uuid: str


@dataclass(frozen=True, slots=True)
class Happened:
    """An event, and the domain that it is about."""

    event: Event
    domain: Domain


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a call.

    Attributes:
        call: the call's number.
        content: the result, a JSON value that is not checked yet; or the call's ControlError.
    """

    call: int
    content: object


@dataclass(frozen=True, slots=True)
class Died:
    """The client ends because of a bug: its last message."""

    detail: str


@dataclass(frozen=True, slots=True)
class Figures:
    """A domain at one moment.

    Attributes:
        vm_mem_bytes: the VM's size as its balloon counts it.
        actual_bytes: ``vm_mem_bytes`` less the balloon, as QEMU reports it. The guest's driver may
            have written only half of it, so it may be larger than ``vm_mem_bytes``; None: unknown.
        state: ``RUNNING`` or ``PAUSED``.
        updated_s: when the guest sent statistics last, by the clock of the VM's host, in whole
            seconds; 0: its driver has sent none since the guest's last reset.
        age_s: how long ago the guest sent them, by the same clock.
        stats: the statistics, with a time of 0; None: there are none.
        counts_disk_reads: whether the statistics say what the guest has read from its disks.
        period_s: how often the guest is asked for statistics; 0: never.
        deflate_on_oom: whether QEMU lets the guest take pages back by itself.
        against: why the balloon must not be moved; None: it may be moved.
        apart_bytes: the guest's memory that ``vm_mem_bytes`` leaves out, such as virtio-mem's.
        restored: whether QEMU's process has restored a saved VM, with the balloon that the VM had
            when it was saved.
    """

    vm_mem_bytes: int
    actual_bytes: int | None
    state: GuestState
    updated_s: int
    age_s: float
    stats: Stats | None
    counts_disk_reads: bool
    period_s: int
    deflate_on_oom: bool
    against: Fault | None
    apart_bytes: int = 0
    restored: bool = False


def encode_call(call: int, do: str, arguments: Mapping[str, str | int]) -> bytes:
    """A call, as one line."""
    return json.dumps({"id": call, "do": do, **arguments}).encode() + b"\n"


def decode_line(line: bytes) -> Answer | Happened | Died:
    """Decodes a line that the client has sent.

    Raises:
        ControlError: the line is no message that a client sends (``NONSENSE``).
    """
    try:
        said = json.loads(line.decode())  # Of bytes json guesses the encoding.
    except (ValueError, RecursionError) as err:
        raise ControlError(Fault.NONSENSE, f"no JSON: {shown(line[:40])}") from err
    match said:
        case {"id": int(call), "ok": content}:
            return Answer(call, content)
        case {"id": int(call), "error": str(fault), "detail": str(detail)} if fault in _FAULTS:
            return Answer(call, ControlError(_FAULTS[fault], shown(detail)))
        case {"event": str(event), "name": str(name), "uuid": str(uuid)} if event in _EVENTS:
            return Happened(_EVENTS[event], Domain(name[:MAX_NAME], uuid[:MAX_NAME]))
        case {"error": str(), "detail": str(detail), **others} if not others:
            return Died(shown(detail))
        case _:
            _nonsense("an unknown message", said)


def decode_domains(content: object) -> list[Domain]:
    """The domains that run. One whose name is too long to be shown is left out.

    Raises:
        ControlError: the answer is no list of domains (``NONSENSE``).
    """
    if not isinstance(content, list):
        _nonsense("no list of domains", content)
    domains = []
    for each in content:
        match each:
            case [str(name), str(uuid)]:
                if 0 < len(name) <= MAX_NAME and len(uuid) <= MAX_NAME:
                    domains.append(Domain(name, uuid))
            case _:
                _nonsense("no domain", each)
    return domains


def decode_uuid(content: object) -> str:
    """The id of a domain that was opened.

    Raises:
        ControlError: the answer has no id (``NONSENSE``).
    """
    match content:
        case {"uuid": str(uuid)} if 0 < len(uuid) <= MAX_NAME:
            return uuid
        case _:
            _nonsense("no uuid", content)


def decode_figures(content: object) -> Figures:
    """A domain's figures.

    Raises:
        ControlError: a figure has a wrong type or is out of range (``NONSENSE``); the domain has
            ended (``GONE``).
    """
    if not isinstance(content, dict):
        _nonsense("no figures", content)
    state = _number(content, "state", _MAX_STATE)
    if state in _ENDED:
        raise ControlError(Fault.GONE, "the domain has ended")
    vm_mem_bytes = _number(content, "size_kib", MAX_BYTES // 1024) * 1024
    stats = content.get("stats")
    if vm_mem_bytes == 0 or not isinstance(stats, dict):
        _nonsense("no size or no statistics", content)
    # A domain that ends meanwhile has statistics without "actual", and that is no error.
    actual_bytes = None
    if "actual" in stats:
        actual_bytes = _number(stats, "actual", MAX_BYTES // 1024) * 1024
    updated_s = _number(stats, "last_update", MAX_BYTES) if "last_update" in stats else 0
    age_ms = content.get("age_ms")
    if type(age_ms) is not int or abs(age_ms) > MAX_BYTES:
        _nonsense("age_ms", age_ms)
    return Figures(
        vm_mem_bytes,
        actual_bytes,
        GuestState.PAUSED if state in _STANDS_STILL else GuestState.RUNNING,
        updated_s,
        age_ms / 1000,
        _stats(content, stats) if updated_s else None,
        content.get("read_bytes") is not None,
        _number(content, "period_s", MAX_BYTES),
        _flag(content, "deflate_on_oom"),
        _against(content),
        _number(content, "apart_kib", MAX_BYTES // 1024) * 1024,
        state == _RUNNING and _number(content, "reason", _MAX_STATE) in _RESTORED,
    )


def _against(content: dict[str, Any]) -> Fault | None:
    if not _flag(content, "balloon"):
        return Fault.NO_BALLOON
    if _flag(content, "hugetlb"):
        return Fault.HUGETLB
    return Fault.PINNED if _flag(content, "pinned") else None


def _stats(content: dict[str, Any], stats: dict[str, Any]) -> Stats:
    fields = {
        field: _number(stats, name, MAX_BYTES) * unit
        for name, (field, unit) in _STATS.items()
        if name in stats
    }
    if content.get("read_bytes") is not None:
        fields["disk_read_bytes"] = _number(content, "read_bytes", MAX_BYTES)
    return Stats(at_s=0.0, **fields)


def _number(content: dict[str, Any], name: str, most: int) -> int:
    value = content.get(name)
    # Compare the type itself: isinstance() would take a bool, whose class is a subclass of int.
    if type(value) is not int or not 0 <= value <= most:
        _nonsense(name, value)
    return value


def _flag(content: dict[str, Any], name: str) -> bool:
    value = content.get(name)
    if not isinstance(value, bool):
        _nonsense(name, value)
    return value


def _nonsense(what: str, found: object) -> NoReturn:
    raise ControlError(Fault.NONSENSE, shown(f"{what}: {found!r}"))


def shown(text: str | bytes) -> str:
    """A text from libvirt or its client, made printable and short."""
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    return printable(text[:MAX_DETAIL])
