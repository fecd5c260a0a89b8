"""Keeps the last events in memory for the API's clients, and tells later ones to clients that
follow.

The events are kept as values, and their text is made only for a client that asks: without clients,
an event costs no more than an append to a queue. All limits are numbers of events, because an
event takes only a few hundred bytes.
"""

from collections import deque
from collections.abc import Callable, Iterator

from balloon_daemon.events import (
    Connected,
    Disconnected,
    Event,
    VmDriven,
    VmNotDriven,
    VmNotSought,
    VmNotWanted,
)
from balloon_daemon.listing import Listing
from balloon_daemon.records.log import as_json
from balloon_daemon.records.words import is_debug, worded
from balloon_daemon.status import Undriven
from balloon_daemon.units import VmId

KEPT_IN_ALL = 256
"""How many of the last events are kept, whatever VM each is about."""

KEPT_EACH = 32
"""How many of the last events about one VM are kept: a balloon that grows to its maximum causes
two events, a decision and its target reached, at each of sixteen steps."""

MOST_VMS = 1024
"""How many VMs have events kept of their own; the VM whose last event is oldest is forgotten."""

Follower = Callable[[str, str], None]
"""Called with a VM's name ("" for the host's events) and the event as a line of JSON."""


class _Kept:
    """An event that is kept, and its line once somebody has asked for it.

    Args:
        event: the event.
        at_s: when it was published.
    """

    __slots__ = ("_event", "_line", "at_s", "name")

    def __init__(self, event: Event, at_s: float) -> None:
        vm = _vm_of(event)
        self.name = getattr(event, "name", "") if vm is None else vm.name
        self.at_s = at_s
        self._event: Event | None = event
        self._line = ""

    @property
    def is_worded(self) -> bool:
        """Whether ``line`` is made already."""
        return self._event is None

    @property
    def line(self) -> str:
        """The event as a line of JSON; "" where the log has no line for it."""
        if self._event is not None:
            line = worded(self._event)
            self._line = "" if line is None else as_json(line, self.at_s)
            self._event = None
        return self._line


class Recent:
    """Keeps the last events. A ``Reader``."""

    def __init__(self) -> None:
        self._all = deque[_Kept](maxlen=KEPT_IN_ALL)
        self._count = 0
        """How many events ``_all`` has had."""
        self._of_vms: dict[VmId, deque[_Kept]] = {}
        self._undriven: dict[str, VmNotDriven] = {}
        self._listing = Listing()
        """The VMs of ``_undriven``, which have no numbers."""
        self._followers = set[Follower]()

    def __call__(self, event: Event, at_s: float) -> None:
        """Keeps an event, and tells it to all followers; events for debugging are left out.

        Args:
            event: the event.
            at_s: when it was published, in seconds since the epoch.
        """
        match event:
            case VmNotDriven(name):
                self._forget_undriven(name)
                self._undriven[name] = event
                self._listing.add(VmId(0, name))
                if len(self._undriven) > MOST_VMS:
                    self._forget_undriven(next(iter(self._undriven)))
            case VmDriven(vm):
                self._forget_undriven(vm.name)
            case VmNotSought(name) | VmNotWanted(name):
                self._forget_undriven(name)
            case Connected() | Disconnected():
                return  # The log has no lines for these events either.
        if is_debug(event):
            return
        kept = _Kept(event, at_s)
        self._all.append(kept)
        self._count += 1
        if (about := _vm_of(event)) is not None:
            ring = self._of_vms.pop(about, None) or deque(maxlen=KEPT_EACH)
            self._of_vms[about] = ring
            ring.append(kept)
            if len(self._of_vms) > MOST_VMS:
                del self._of_vms[next(iter(self._of_vms))]
        if self._followers and kept.line:
            for follower in tuple(self._followers):
                follower(kept.name, kept.line)

    def lines(self) -> list[tuple[str, str]]:
        """The last events, each with its VM's name ("" for the host's), as lines of JSON."""
        return [(kept.name, kept.line) for kept in self._all if kept.line]

    def word(self) -> Iterator[None]:
        """Makes the lines of the last events that have none yet, one in each step, so that
        ``lines`` takes little time afterwards."""
        for kept in tuple(self._all):
            if not kept.is_worded:
                kept.line  # noqa: B018  # Makes the line, and keeps it.
                yield

    def has_lines_of(self, name: str) -> bool:
        """Whether ``lines`` has any about a VM of this name ("": about the host)."""
        return any(kept.name == name and kept.line for kept in self._all)

    def lines_of(self, vm: VmId) -> Iterator[str]:
        """The last events about a VM, as lines of JSON."""
        for kept in tuple(self._of_vms.get(vm, ())):
            if kept.line:
                yield kept.line

    def undriven(self, name: str = "") -> Iterator[Undriven]:
        """The VMs that could not be driven when that was last tried.

        Args:
            name: only the VM of this name; "": all, by their names.
        """
        names = (name,) if name else [vm_id.name for vm_id in self._listing.ids()]
        for each in names:
            if (event := self._undriven.get(each)) is not None:
                line = worded(event)
                assert line is not None
                yield Undriven(event.name, event.address, event.fault.value, line.message)

    def _forget_undriven(self, name: str) -> None:
        if self._undriven.pop(name, None) is not None:
            self._listing.remove(VmId(0, name))

    def follow(self, follower: Follower) -> None:
        """Tells all later events to a follower."""
        self._followers.add(follower)

    def leave(self, follower: Follower) -> None:
        """Tells no more events to a follower."""
        self._followers.discard(follower)


def _vm_of(event: Event) -> VmId | None:
    vm = getattr(event, "vm", None)
    return vm if isinstance(vm, VmId) else None
