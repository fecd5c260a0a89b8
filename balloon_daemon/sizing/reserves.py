"""Memory that operators want the host to have above its margin, for a time. Pure.

While there are reserves, the policy goes by a margin that is larger by all of them: with less
available than that, memory is low, and balloons are given back only with more. So a reserve needs
no rules of its own for what is taken from whom. The operator is answered once that much is
available, or once it is known why it will not be.

The alarm of the low-memory source knows the margin alone. So while there are reserves the source
is read each ``recheck_s``, and more often as long as an operator waits for the answer.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from balloon_daemon.sizing.decision import Ended, NeverLow, Reading, Share
from balloon_daemon.sizing.host_events import ReserveAnswered, Reserved, ReserveOver, Seen
from balloon_daemon.sizing.outcome import Outcome
from balloon_daemon.sizing.reclaims import LOOKS, limit
from balloon_daemon.sizing.row import Row
from balloon_daemon.units import MIB, VmId

ROUNDS_FIRST = 2
"""For how many rounds the policy looks before it is judged whether any VM can give more."""


@dataclass(slots=True)
class _Reserve:
    """A reserve.

    Attributes:
        reserved: what the operator has asked for.
        began_s: when it began.
        waits: whether the operator still waits for the answer.
    """

    reserved: Reserved
    began_s: float
    waits: bool = True

    @property
    def until_s(self) -> float:
        return self.began_s + self.reserved.for_s


class Reserves:
    """All reserves of a host.

    Args:
        rows: the VMs.
        recheck_s: how often the policy asks a VM for more, while memory is low.
    """

    def __init__(self, rows: Mapping[VmId, Row], recheck_s: float) -> None:
        self._rows = rows
        self._recheck_s = recheck_s
        self._reserves: dict[int, _Reserve] = {}
        self._seen: Seen = None
        self._seen_at_s = -math.inf
        self.next_s = math.inf
        """When to read the source next; infinity: there is no reserve."""

    @property
    def mib(self) -> int:
        """What all reserves add up to, in MiB."""
        return sum(-(-each.reserved.size_bytes // MIB) for each in self._reserves.values())

    @property
    def needed_mib(self) -> int:
        """The margin, as it was read last, and all reserves, in MiB."""
        seen = self._seen
        margin_mib = seen.margin_mib - seen.reserved_mib if isinstance(seen, Reading) else 0
        return margin_mib + self.mib

    def all_until_s(self) -> list[tuple[int, float]]:
        """Each reserve's size, in bytes, and its end."""
        return [(each.reserved.size_bytes, each.until_s) for each in self._reserves.values()]

    def saw(self, seen: Seen, now_s: float) -> Seen:
        """A reading by which the policy goes: its margin is larger by all reserves."""
        if self._reserves and isinstance(seen, Reading):
            mib = self.mib
            seen = seen._replace(margin_mib=seen.margin_mib + mib, reserved_mib=mib)
        self._seen, self._seen_at_s = seen, now_s
        return seen

    def begin(self, reserved: Reserved, outcome: Outcome) -> None:
        """Begins a reserve; the source is to be read at once."""
        self._reserves[reserved.ticket] = _Reserve(reserved, outcome.now_s)
        # An earlier reading of this moment has a margin without this reserve.
        self.next_s, self._seen_at_s = outcome.now_s, -math.inf

    def withdraw(self, ticket: int, outcome: Outcome) -> None:
        """Ends a reserve for whose answer nobody waits any more."""
        if ticket in self._reserves:
            self._end(ticket, Ended.WITHDRAWN, outcome)

    def end_all(self, outcome: Outcome) -> None:
        """Ends all reserves, as an operator asks."""
        for ticket in tuple(self._reserves):
            self._end(ticket, Ended.WITHDRAWN, outcome)

    def halt(self, outcome: Outcome) -> None:
        """Ends all reserves, because balloond ends."""
        for ticket in tuple(self._reserves):
            self._end(ticket, Ended.HALTED, outcome)

    def pass_time(self, outcome: Outcome) -> None:
        """Answers who waits, and ends reserves whose time is over."""
        # Go on only with a reading of this very moment: an earlier one does not show whether
        # enough is available for a reserve.
        if self.next_s > outcome.now_s or self._seen_at_s != outcome.now_s:
            return
        seen = self._seen
        for ticket, reserve in tuple(self._reserves.items()):
            if reserve.waits and (why := self._answer(reserve, seen, outcome.now_s)) is not None:
                self._tell(reserve, why, seen, outcome)
            if outcome.now_s >= reserve.until_s:
                self._end(ticket, Ended.TIME, outcome)
        waits = any(reserve.waits for reserve in self._reserves.values())
        self.next_s = math.inf
        if self._reserves:
            next_s = outcome.now_s + self._recheck_s / (LOOKS if waits else 1)
            self.next_s = min(next_s, *(each.until_s for each in self._reserves.values()))

    def _answer(self, reserve: _Reserve, seen: Seen, now_s: float) -> Ended | None:
        """Why the wait for a reserve ends now; None: it goes on."""
        if isinstance(seen, NeverLow):
            return Ended.SWITCHED_OFF
        if isinstance(seen, Reading) and not seen.is_low:
            return Ended.COMPLETE
        if now_s >= min(reserve.began_s + reserve.reserved.within_s, reserve.until_s):
            return Ended.TIME
        judged = now_s >= reserve.began_s + ROUNDS_FIRST * self._recheck_s
        if judged and seen is not None and not any(map(_may_give, self._rows.values())):
            return Ended.NOBODY
        return None

    def _tell(self, reserve: _Reserve, why: Ended, seen: Seen, outcome: Outcome) -> None:
        reserve.waits = False
        reading = seen if isinstance(seen, Reading) else None
        shares = (Share(vm, 0, 0, limit(row) or row.policy.held) for vm, row in self._rows.items())
        took_s = outcome.now_s - reserve.began_s
        told = () if why is Ended.COMPLETE else tuple(shares)
        outcome.note(ReserveAnswered(reserve.reserved, why, took_s, reading, told))

    def _end(self, ticket: int, why: Ended, outcome: Outcome) -> None:
        reserve = self._reserves.pop(ticket)
        if reserve.waits and why is Ended.HALTED:
            self._tell(reserve, why, None, outcome)
        outcome.note(ReserveOver(reserve.reserved, why))
        if not self._reserves:
            self.next_s = math.inf


def _may_give(row: Row) -> bool:
    return row.can_give or row.actual_bytes < row.told_bytes
