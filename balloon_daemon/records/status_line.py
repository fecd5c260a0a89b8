"""Describes balloond's state in one line, for ``systemctl status``."""

import time

from balloon_daemon.errors import printable
from balloon_daemon.events import Event, Fault, VmLost
from balloon_daemon.records.counters import FAULTS
from balloon_daemon.records.words import worded
from balloon_daemon.sizing.decision import NeverLow, Reading
from balloon_daemon.units import MIB, format_size

MOST_CHARACTERS = 160
"""The most characters of the last fault's text in the line; the log has the whole text."""


class StatusLine:
    """Makes the line, and remembers the last fault for it. The event bus calls this object with
    each event: it is a ``Reader`` (``records/bus.py``)."""

    def __init__(self) -> None:
        self._trouble: tuple[Event, float] | None = None
        self._worded = ""

    def __call__(self, event: Event, at_s: float) -> None:
        """Remembers a fault.

        Args:
            event: the event.
            at_s: when it was published, in seconds since the epoch.
        """
        gone = isinstance(event, VmLost) and event.fault is Fault.GONE
        if type(event) in FAULTS and not gone:
            self._trouble = event, at_s

    def line(self, vms: int, balloon_bytes: int, seen: Reading | NeverLow | None) -> str:
        """The line. Available memory changes all the time, so it is shown with two digits: the
        line changes only when that memory changes noticeably.

        Args:
            vms: how many VMs there are.
            balloon_bytes: the sum of their balloons.
            seen: a reading of the low-memory source; None: its figures are unknown.
        """
        balloons = format_size(balloon_bytes // MIB * MIB)
        parts = [f"{vms} VM{'' if vms == 1 else 's'}, balloons {balloons}", _memory(seen)]
        if self._trouble is not None:
            self._worded, self._trouble = _account(*self._trouble), None
        if self._worded:
            parts.append(self._worded)
        return "; ".join(parts)


def _memory(seen: Reading | NeverLow | None) -> str:
    match seen:
        case Reading():
            low = ", low" if seen.is_low else ""
            available = _rough(seen.available_mib)
            return f"{available:,} MiB available, margin {seen.margin_mib:,} MiB{low}"
        case NeverLow(why):
            return f"low memory is switched off ({printable(why)})"
        case None:
            return "available memory unknown"


def _account(event: Event, at_s: float) -> str:
    clock = time.strftime("%b %d %H:%M:%S", time.localtime(at_s))
    line = worded(event)
    said = "" if line is None else printable(line.message)
    vm = getattr(event, "vm", None)
    about = "" if vm is None else f"{printable(str(vm))}: "
    if len(said) > MOST_CHARACTERS:
        said = f"{said[:MOST_CHARACTERS]}…"
    return f"last trouble {clock}: {about}{said}"


def _rough(mib: int) -> int:
    """A number rounded down to its two leading digits."""
    factor: int = 10 ** max(0, len(str(mib)) - 2)
    return mib // factor * factor
