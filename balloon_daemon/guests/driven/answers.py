"""Reads the JSON that VMMs answer, and takes numbers only where they are in range. Pure.

Sizes come from the VMM itself: an impossible size raises ``NONSENSE``. Statistics come from the
guest, and the VMM only passes them on: a statistic that is out of range is left out, as unknown.
"""

import json
from collections.abc import Hashable, Mapping

from balloon_daemon.errors import printable
from balloon_daemon.guests.driven.control import ControlError, Fault
from balloon_daemon.guests.seam import Stats
from balloon_daemon.units import MOST_MEMORY_BYTES

MAX_NESTED = 16 * 1024
"""How many opening brackets a message may have, and so how many arrays and objects. 256 KiB of
arrays in arrays have 129,000, which take 14 ms to parse; 16,384 take 1.5 ms. Other values are not
counted, as 256 KiB of them take 6 ms at most: Cloud Hypervisor says of each virtual processor on
which of the host's processors it may run, 65,536 numbers for 256 virtual processors on 256."""

_SHOWN = 200
"""How many characters of a VMM's words a ``ControlError`` carries at most."""

_STATS = {
    "swap_in": "swap_in_bytes",
    "swap_out": "swap_out_bytes",
    "major_faults": "major_faults",
    "minor_faults": "minor_faults",
    "free_memory": "free_bytes",
    "total_memory": "total_bytes",
    "available_memory": "available_bytes",
    "disk_caches": "caches_bytes",
    "hugetlb_allocations": "hugetlb_allocations",
    "hugetlb_failures": "hugetlb_failures",
    # Firecracker's name for this statistic, and Cloud Hypervisor's.
    "oom_kill": "oom_kills",
    "oom_kills": "oom_kills",
    "alloc_stall": "alloc_stalls",
    "alloc_stalls": "alloc_stalls",
    "async_scan": "async_scans",
    "async_scans": "async_scans",
    "direct_scan": "direct_scans",
    "direct_scans": "direct_scans",
    "async_reclaim": "async_reclaims",
    "async_reclaims": "async_reclaims",
    "direct_reclaim": "direct_reclaims",
    "direct_reclaims": "direct_reclaims",
}
"""Each statistic's name in the answers of Firecracker, Cloud Hypervisor and crosvm (which share
the first ten), and its field of ``Stats``."""

_MOST = (1 << 64) - 2
"""The greatest statistic: 2**64 − 1 is −1, which a driver sends for a statistic that it lacks."""


def shown(value: object) -> str:
    """A value from a VMM's answer as text for an error: printable, on one line, at most ``_SHOWN``
    characters; of an array or object only that it is one."""
    match value:
        case str():
            text = value
        case list() | dict():
            # Do not call repr(): a value that json has parsed may be nested too deeply for repr().
            # In CPython 3.14 and newer the C stack limits how deep json and repr() can go, and
            # repr() may need more of the stack.
            text = "an array" if isinstance(value, list) else "an object"
        case _:
            text = repr(value)
    return printable(text[:_SHOWN])


def nonsense(what: str, value: object) -> ControlError:
    """The error for an answer that its protocol does not allow."""
    return ControlError(Fault.NONSENSE, f"{what}: {shown(value)}")


def has_few_nested(text: bytes | bytearray) -> bool:
    """Whether a message has no more opening brackets than ``MAX_NESTED``, those within its texts
    included. Counting them takes some 2 ns a byte, and nothing is parsed."""
    return len(text) <= MAX_NESTED or text.count(b"[") + text.count(b"{") <= MAX_NESTED


def parse(text: bytes) -> object:
    """Parses JSON.

    Raises:
        ControlError: the text is no JSON, has too many arrays and objects (``MAX_NESTED``), or is
            nested too deeply.
    """
    if not has_few_nested(text):
        raise ControlError(Fault.NONSENSE, f"over {MAX_NESTED} arrays and objects")
    try:
        # Decode here: of bytes json guesses the encoding, and Python loads the module of UTF-16 or
        # UTF-32 at its first use, which reads files while VMs are served.
        return json.loads(text.decode())
    except (ValueError, RecursionError) as err:
        raise nonsense("not JSON", text[:_SHOWN]) from err


def member(answer: object, name: str) -> object:
    """A member of an object; None where it is null or missing.

    Raises:
        ControlError: the answer is no object.
    """
    if not isinstance(answer, Mapping):
        raise nonsense(f"no object with {name}", answer)
    return answer.get(name)


def whole_number(
    answer: object, name: str, most: int = MOST_MEMORY_BYTES, *, least: int = 0
) -> int:
    """A member that is a whole number from ``least`` to ``most``.

    Raises:
        ControlError: the member is something else, or missing.
    """
    value = member(answer, name)
    # Compare the type itself: isinstance() would take a bool, whose class is a subclass of int.
    if type(value) is not int or not least <= value <= most:
        raise nonsense(name, value)
    return value


def flag(answer: object, name: str) -> bool:
    """A member that is true or false; false where it is null or missing.

    Raises:
        ControlError: the member is something else.
    """
    value = member(answer, name)
    if value is not None and not isinstance(value, bool):
        raise nonsense(name, value)
    return bool(value)


def elements(answer: object, name: str) -> list[object]:
    """A member that is an array; empty where it is null or missing.

    Raises:
        ControlError: the member is something else.
    """
    value = member(answer, name)
    if value is not None and not isinstance(value, list):
        raise nonsense(name, value)
    return value or []


def named_stats(answer: object, at_s: float) -> Stats | None:
    """The guest's statistics in an answer; None where it has none.

    Args:
        answer: an object, some of whose members are statistics.
        at_s: when the guest has sent them, on CLOCK_MONOTONIC.

    Raises:
        ControlError: the answer is no object.
    """
    found = {
        field: value
        for name, field in _STATS.items()
        if type(value := member(answer, name)) is int and 0 <= value <= _MOST
    }
    return Stats(at_s, **found) if found else None


class Renewal:
    """Tells new statistics from old ones: a VMM repeats the guest's last statistics in each answer
    until the guest sends others.

    The first statistics that are read may be of any age: they do not count as new. They are only
    remembered, so that the next ones can be compared with them.
    """

    def __init__(self) -> None:
        self._last: Hashable = None

    def seen(self, mark: Hashable) -> bool:
        """Whether the statistics differ from those of the last call; False at the first call.

        Args:
            mark: the statistics' time, or another value that changes when the guest sends
                statistics; never None.
        """
        renewed = self._last is not None and mark != self._last
        self._last = mark
        return renewed
