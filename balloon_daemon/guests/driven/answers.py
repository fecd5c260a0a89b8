"""Reads what VMMs answer in JSON, and trusts it no further than a number in range. Pure.

Sizes that the VMM answers for are checked: an impossible one is ``NONSENSE``. A guest's statistics
are the guest's, and only passed on by its VMM: one that makes no sense is left out, as unknown.
"""

import json
from collections.abc import Hashable, Mapping

from balloon_daemon.errors import printable
from balloon_daemon.guests.driven.control import ControlError, Fault
from balloon_daemon.guests.seam import Stats
from balloon_daemon.units import MOST_MEMORY_BYTES

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
    # Firecracker's word first, Cloud Hypervisor's second.
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
the first ten), and in the seam."""

_MOST = (1 << 64) - 2
"""The greatest figure: 2**64 − 1 is a driver's −1, for one that it does not have."""


def shown(value: object) -> str:
    """A VMM's words for an error: printable, on one line, of bounded length."""
    text = value if isinstance(value, str) else repr(value)
    return printable(text[:_SHOWN])


def nonsense(what: str, value: object) -> ControlError:
    """The error for an answer that its protocol does not allow."""
    return ControlError(Fault.NONSENSE, f"{what}: {shown(value)}")


def parse(text: bytes) -> object:
    """Parses JSON.

    Raises:
        ControlError: it is none, or nested too deeply.
    """
    try:
        return json.loads(text)
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
        ControlError: it is something else, or missing.
    """
    value = member(answer, name)
    # Not isinstance(): to Python, true is a number too.
    if type(value) is not int or not least <= value <= most:
        raise nonsense(name, value)
    return value


def flag(answer: object, name: str) -> bool:
    """A member that is true or false; false where it is null or missing.

    Raises:
        ControlError: it is something else.
    """
    value = member(answer, name)
    if value is not None and not isinstance(value, bool):
        raise nonsense(name, value)
    return bool(value)


def elements(answer: object, name: str) -> list[object]:
    """A member that is an array; empty where it is null or missing.

    Raises:
        ControlError: it is something else.
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
    """Tells whether a guest has sent its statistics anew, where its VMM answers with the last ones
    for as long as no others come, however old they are.

    The first ones that are read may be of any age, so they count only as something to compare
    with.
    """

    def __init__(self) -> None:
        self._last: Hashable = None

    def seen(self, mark: Hashable) -> bool:
        """Whether these are not the statistics of the last call.

        Args:
            mark: what tells one sending from the next; never None.
        """
        renewed = self._last is not None and mark != self._last
        self._last = mark
        return renewed
