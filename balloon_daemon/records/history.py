"""Keeps the last day of a host: a reader of events, with a program that writes the file.

Runs in the controller. The program is ``history_writer``; its lines are
``[table, [value of each column, …]]``.
"""

import json
from collections.abc import Callable
from itertools import islice
from time import monotonic

from balloon_daemon.events import (
    Connected,
    Decided,
    Disconnected,
    Event,
    HistoryEnded,
    HistorySetAside,
    ProtectionEvent,
    Publish,
    Surveyed,
    VmAttached,
    VmDriven,
    VmLetGo,
    VmLost,
)
from balloon_daemon.rate_limit import LineBudget
from balloon_daemon.records.scribe import Scribe
from balloon_daemon.records.words import worded
from balloon_daemon.sizing.decision import Reading
from balloon_daemon.units import MIB, VmId

SURVEYS = 12
"""The history keeps the first of each ``SURVEYS`` surveys (``Surveyed``): by default, one a
minute."""

ATTACHED_AT_ONCE, ATTACHED_A_SECOND = 1_000, 1 / 60
"""How many of one user's VMs enter the history as they attach: this many at first, then this many
a second. Without the limit a user who attaches and leaves a hundred times a second would fill the
history, which keeps the last 10,000 events of all VMs. A VM beyond the limit has no event in
it."""

LOOKED_AT = 2
"""How many users are looked at each time that a VM attaches: a user whose ``LineBudget`` is full
again is forgotten. Otherwise somebody with subordinate users (subuid(5)), who may attach VMs as
65,536 users, would have balloond remember all of them."""

_ASIDE = "aside "
"""The program's line about a damaged file that it has renamed begins with this; the new ending of
the file's name and the reason follow."""


class History:
    """Keeps decisions, findings of guest protection, and samples. The event bus calls this object
    with each event: it is a ``Reader`` (``records/bus.py``).

    Args:
        scribe: hands rows to the program that writes the file.
        publish: called with each event to be published.
        clock: a monotonic clock, in seconds.
    """

    def __init__(
        self, scribe: Scribe, publish: Publish, clock: Callable[[], float] = monotonic
    ) -> None:
        self._scribe = scribe
        self._publish = publish
        self._clock = clock
        self._surveys = 0
        self._ended = False
        self._users: dict[VmId, int] = {}
        self._budgets: dict[int, LineBudget] = {}
        self._left_out = set[VmId]()

    def __call__(self, event: Event, at_s: float) -> None:
        """Sends an event to the writer, if the history keeps events of its kind.

        Args:
            event: the event.
            at_s: when it was published, in seconds since the epoch.
        """
        if isinstance(event, Surveyed):
            self._look_at_writer()
            if self._surveys % SURVEYS == 0:
                self._sample(event, at_s)
            self._surveys += 1
        elif isinstance(event, Connected | VmDriven):
            self._users[event.vm] = event.uid
        elif isinstance(event, Disconnected | VmLetGo | VmLost):
            self._users.pop(event.vm, None)
            self._left_out.discard(event.vm)
        elif isinstance(event, Decided | VmAttached | ProtectionEvent):
            if isinstance(event, VmAttached):
                self._attached(event.vm)
            if getattr(event, "quiet", False) or event.vm in self._left_out:
                return  # A quiet decision repeats the VM's last one.
            if (line := worded(event)) is not None:
                self._send("events", at_s, str(event.vm), line.word, line.message)

    def close(self) -> None:
        """Writes no more."""
        self._scribe.close()

    def _attached(self, vm: VmId) -> None:
        """Notes that a VM has attached: its events are left out if its user has had too many
        VMs."""
        if (user := self._users.get(vm)) is not None:
            now_s = self._clock()
            for each, budget in list(islice(self._budgets.items(), LOOKED_AT)):
                # A user who is not forgotten goes to the end, and is looked at after all others.
                del self._budgets[each]
                if not budget.is_full(now_s):
                    self._budgets[each] = budget
            new = LineBudget(ATTACHED_AT_ONCE, ATTACHED_A_SECOND)
            if not self._budgets.setdefault(user, new).has_one(now_s):
                self._left_out.add(vm)

    def _sample(self, event: Surveyed, at_s: float) -> None:
        if isinstance(event.seen, Reading):
            available, margin = event.seen.available_mib * MIB, event.seen.margin_mib * MIB
            self._send("samples", at_s, "", None, None, None, available, margin, None)
        for vm, size, balloon, target, said, held in event.vms:
            self._send("samples", at_s, str(vm), size, balloon, target, said, None, held)

    def _send(self, table: str, *values: object) -> None:
        # A row is lost while the program is ``scribe.MOST_BYTES`` behind: the next sample comes
        # soon.
        self._scribe.send(json.dumps([table, values]).encode() + b"\n")

    def _look_at_writer(self) -> None:
        while (line := self._scribe.take_line()).startswith(_ASIDE):
            ending, _, reason = line.removeprefix(_ASIDE).partition(" ")
            self._publish(HistorySetAside(reason, ending))
        why = self._scribe.why_ended()
        if why is not None and not self._ended:
            self._ended = True
            self._publish(HistoryEnded(why))
