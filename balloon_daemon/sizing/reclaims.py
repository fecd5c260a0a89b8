"""Takes an amount of memory from guests at once, for operators that wait for the answer. Pure.

Theory of operation
    A *reclaim* asks in rounds, one each ``recheck_s``, as the policy does while memory is low. Of
    all VMs that may be asked, a round asks those of the lowest priority, each for one step at
    most, and for less where less is missing. If several reclaims ask a VM in one round, the oldest
    is served first. What a reclaim has asked of a VM are *spans* of its balloon, from one size to
    another; so no byte counts for two reclaims, or for a reclaim and for the policy.

    ============  =================================================================================
    it ends       when
    ============  =================================================================================
    COMPLETE      all of it has come, as the drivers report
    TIME          its time is over
    NOBODY        nobody can be asked for more, and what was asked has come or comes no more
    WITHDRAWN     who asked has gone: what was taken goes back as after low memory
    HALTED        balloond ends
    ============  =================================================================================

    Whatever a guest has not given by then, it is not asked for any more. What came is kept for
    ``hold_s``, as a size is that an operator has set: low memory, or need of the guest, ends that.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from balloon_daemon.sizing.decision import Ended, Reason, Share
from balloon_daemon.sizing.host_events import ReclaimOver, Wanted
from balloon_daemon.sizing.outcome import Outcome
from balloon_daemon.sizing.protection import Protection
from balloon_daemon.sizing.row import Row
from balloon_daemon.units import PAGE_SIZE, VmId

ROUNDS_STILL = 4
"""For how many rounds a balloon that does not grow counts as one that still gives: the time in
which a careful guest is found stalled (``stall``), as VMMs may report sizes a second late."""

LOOKS = 10
"""How often in each round the reclaim checks whether all of the wanted memory has come."""


@dataclass(slots=True)
class _Part:
    """What a reclaim has asked of a VM.

    Attributes:
        spans: the sizes of its balloon from which and to which it was asked to grow, one span for
            each time.
        asked_bytes: how much was asked, whatever became of it.
        release_at_s: when a step down would have been tried; None: never.
        objection: why it was asked for nothing in the last round; None: it was asked.
        grew_at_s: when its balloon last grew, or it was last asked.
        most_bytes: its balloon's size at ``grew_at_s``.
    """

    spans: list[tuple[int, int]] = field(default_factory=list)
    asked_bytes: int = 0
    release_at_s: float | None = None
    objection: Reason | None = None
    grew_at_s: float = -math.inf
    most_bytes: int = 0

    def trim(self, told_bytes: int) -> None:
        """Forgets the parts of spans above the target: this memory was given back."""
        if self.spans and self.spans[-1][1] > told_bytes:
            self.spans = [(low, min(high, told_bytes)) for low, high in self.spans]
            self.spans = [span for span in self.spans if span[0] < span[1]]

    @property
    def spanned_bytes(self) -> int:
        """How much the VM is still asked for: the sum of its spans."""
        return sum(high - low for low, high in self.spans)

    def came_bytes(self, row: Row) -> int:
        """How much of the spans is in the balloon."""
        have_bytes = min(row.actual_bytes, row.told_bytes)
        return sum(max(0, min(have_bytes, high) - low) for low, high in self.spans)

    def due_bytes(self, row: Row, still_s: float, now_s: float) -> int:
        """How much of the spans may still come into the balloon."""
        if row.actual_bytes > self.most_bytes:
            self.grew_at_s, self.most_bytes = now_s, row.actual_bytes
        if now_s - self.grew_at_s >= still_s:
            return 0
        return self.spanned_bytes - self.came_bytes(row)


@dataclass(slots=True)
class _Reclaim:
    """A reclaim that goes on.

    Attributes:
        wanted: what the operator has asked for.
        began_s: when it began.
        parts: what it has asked of each VM, or why it has asked for nothing.
        gone: what VMs that have gone were asked for.
    """

    wanted: Wanted
    began_s: float
    parts: dict[VmId, _Part] = field(default_factory=dict)
    gone: list[Share] = field(default_factory=list)


class Reclaims:
    """All reclaims of a host.

    Args:
        rows: the VMs.
        protection: the careful VMs' protection.
        recheck_s: the time of a round.
        objection: why a VM must not be asked for more just now; None: it may be asked.
    """

    def __init__(
        self,
        rows: Mapping[VmId, Row],
        protection: Protection,
        recheck_s: float,
        objection: Callable[[VmId, Row, Outcome], Reason | None],
    ) -> None:
        self._rows = rows
        self._protection = protection
        self._recheck_s = recheck_s
        self._objection = objection
        self._reclaims: dict[int, _Reclaim] = {}
        self._round_at_s = self.next_s = math.inf
        """When the next round is, and when to look next; infinity: there is no reclaim."""

    def begin(self, wanted: Wanted, outcome: Outcome) -> None:
        """Begins a reclaim, with a round at once unless one goes on."""
        if not self._reclaims:
            self._round_at_s = outcome.now_s
        self._reclaims[wanted.ticket] = _Reclaim(wanted, outcome.now_s)
        self.pass_time(outcome)

    def withdraw(self, ticket: int, outcome: Outcome) -> None:
        """Ends a reclaim for which nobody waits any more."""
        if ticket in self._reclaims:
            self._end(ticket, Ended.WITHDRAWN, outcome)

    def remove(self, vm: VmId) -> None:
        """Notes that a VM is gone, and its balloon with it."""
        for reclaim in self._reclaims.values():
            if (part := reclaim.parts.pop(vm, None)) is not None:
                reclaim.gone.append(Share(vm, part.asked_bytes, 0, part.objection, gone=True))

    def halt(self, outcome: Outcome) -> None:
        """Ends all reclaims; no target is sent any more."""
        for ticket in tuple(self._reclaims):
            self._end(ticket, Ended.HALTED, outcome)

    def going_on(self) -> list[tuple[Wanted, int, float]]:
        """The reclaims that go on: what was wanted, how much has come, and until when it is
        tried."""
        return [
            (each.wanted, self._came_bytes(each), each.began_s + each.wanted.within_s)
            for each in self._reclaims.values()
        ]

    def pass_time(self, outcome: Outcome) -> None:
        """Ends reclaims that are complete, whose time is over or that can ask nobody any more;
        asks for more memory where a round is due."""
        now_s = outcome.now_s
        if not self._reclaims:
            return
        is_round = now_s >= self._round_at_s
        left = self._steps() if is_round else {}
        objections: dict[VmId, Reason | None] = {}
        for ticket, reclaim in tuple(self._reclaims.items()):
            for vm, part in reclaim.parts.items():
                part.trim(self._rows[vm].told_bytes)
            wanted_bytes = reclaim.wanted.size_bytes
            came_bytes = self._came_bytes(reclaim)
            if came_bytes >= wanted_bytes:
                self._end(ticket, Ended.COMPLETE, outcome)
            elif now_s >= reclaim.began_s + reclaim.wanted.within_s:
                self._end(ticket, Ended.TIME, outcome)
            elif is_round:
                due_bytes = self._due_bytes(reclaim, now_s)
                missing_bytes = wanted_bytes - came_bytes - due_bytes
                asked = missing_bytes > 0 and self._ask(
                    reclaim, missing_bytes, left, objections, outcome
                )
                if not asked and not due_bytes:
                    self._end(ticket, Ended.NOBODY, outcome)
        if is_round:
            self._round_at_s = now_s + self._recheck_s
        self.next_s = self._next_s(now_s)

    def _next_s(self, now_s: float) -> float:
        if not self._reclaims:
            return math.inf
        ends_s = (each.began_s + each.wanted.within_s for each in self._reclaims.values())
        return min(self._round_at_s, now_s + self._recheck_s / LOOKS, *ends_s)

    # --- a round ------------------------------------------------------------------------------

    def _steps(self) -> dict[VmId, int]:
        """What each VM may be asked for in a round: a step, up to its maximum."""
        return {vm: _step_bytes(row) for vm, row in self._rows.items()}

    def _ask(
        self,
        reclaim: _Reclaim,
        missing_bytes: int,
        left: dict[VmId, int],
        objections: dict[VmId, Reason | None],
        outcome: Outcome,
    ) -> bool:
        """Asks VMs for what is missing; returns whether any was asked.

        Args:
            reclaim: the reclaim that asks.
            missing_bytes: what is missing.
            left: what each VM may still be asked for in this round.
            objections: what speaks against asking VMs, as far as it is known in this round.
            outcome: takes the targets.
        """
        givers: dict[VmId, Row] = {}
        for vm in reclaim.wanted.vms or self._rows:
            if (row := self._rows.get(vm)) is None:
                continue
            if vm not in objections:
                objections[vm] = self._objection(vm, row, outcome)
            part = reclaim.parts.setdefault(
                vm, _Part(release_at_s=row.policy.state().release_at_s)
            )
            part.objection = objections[vm] or limit(row)
            still = part.asked_bytes and row.actual_bytes < row.told_bytes
            if (
                part.objection is None
                and still
                and part.grew_at_s + self._still_s <= outcome.now_s
            ):
                part.objection = Reason.STALLED
            if part.objection is None:
                givers[vm] = row
        lowest = min((row.priority for row in givers.values()), default=0)
        for vm, row in tuple(givers.items()):
            if row.priority > lowest:
                reclaim.parts[vm].objection = Reason.LOWER_FIRST
                del givers[vm]
        sum_bytes = sum(left[vm] for vm in givers)
        if not sum_bytes:
            # An earlier reclaim has asked these VMs for all that they may give in this round.
            return bool(givers)
        for vm, row in givers.items():
            share_bytes = min(left[vm], -(-left[vm] * missing_bytes // sum_bytes))
            share_bytes = -(-share_bytes // PAGE_SIZE) * PAGE_SIZE
            if share_bytes:
                left[vm] -= share_bytes
                self._take(reclaim, vm, row, share_bytes, outcome)
        return True

    def _take(
        self, reclaim: _Reclaim, vm: VmId, row: Row, share_bytes: int, outcome: Outcome
    ) -> None:
        part, low = reclaim.parts[vm], row.told_bytes
        part.spans.append((low, low + share_bytes))
        part.asked_bytes += share_bytes
        part.grew_at_s, part.most_bytes = outcome.now_s, row.actual_bytes
        hold_s = _longer(reclaim.wanted.hold_s, row.policy.state().release_at_s, outcome.now_s)
        size_bytes = low + share_bytes
        self._protection.settle(vm, row, size_bytes, Reason.RECLAIMED, hold_s, outcome)

    # --- what has come, and the end -----------------------------------------------------------

    @property
    def _still_s(self) -> float:
        return ROUNDS_STILL * self._recheck_s

    def _came_bytes(self, reclaim: _Reclaim) -> int:
        return sum(part.came_bytes(self._rows[vm]) for vm, part in reclaim.parts.items())

    def _due_bytes(self, reclaim: _Reclaim, now_s: float) -> int:
        rows, still_s = self._rows, self._still_s
        return sum(part.due_bytes(rows[vm], still_s, now_s) for vm, part in reclaim.parts.items())

    def _end(self, ticket: int, why: Ended, outcome: Outcome) -> None:
        reclaim = self._reclaims.pop(ticket)
        for vm, part in reclaim.parts.items():
            part.trim(self._rows[vm].told_bytes)
        shares = [
            Share(vm, part.asked_bytes, part.came_bytes(self._rows[vm]), part.objection)
            for vm, part in reclaim.parts.items()
        ]
        if why is not Ended.HALTED:
            for vm, part in reclaim.parts.items():
                if part.spans:
                    self._stop(vm, part, reclaim.wanted, why, outcome)
        took_s = outcome.now_s - reclaim.began_s
        outcome.note(ReclaimOver(reclaim.wanted, why, took_s, (*shares, *reclaim.gone)))
        self.next_s = self._next_s(outcome.now_s)

    def _stop(self, vm: VmId, part: _Part, wanted: Wanted, why: Ended, outcome: Outcome) -> None:
        """Lowers a VM's target by what the reclaim has asked of it and it has not given."""
        row, state = self._rows[vm], self._rows[vm].policy.state()
        missing_bytes = part.spanned_bytes - part.came_bytes(row)
        reason, hold_s, release_at_s = Reason.RECLAIMED, wanted.hold_s, state.release_at_s
        if why is Ended.WITHDRAWN:
            # Memory goes back as after low memory, but no sooner than without the reclaim.
            hold_s, release_at_s = row.policy.settings.release_after_s, part.release_at_s
            reason = Reason.WITHDRAWN
        elif not missing_bytes:
            return
        hold_s = _longer(hold_s, release_at_s, outcome.now_s)
        size_bytes = row.told_bytes - missing_bytes
        self._protection.settle(vm, row, size_bytes, reason, hold_s, outcome)


def _step_bytes(row: Row) -> int:
    """A step of a VM's policy, or what its target lacks to the maximum if that is less; in whole
    pages."""
    policy = row.policy
    step_pages = -(-policy.max_bytes // PAGE_SIZE // policy.settings.steps)
    return max(0, min(step_pages * PAGE_SIZE, policy.max_bytes - row.told_bytes))


def limit(row: Row) -> Reason | None:
    """Why a VM can have no larger target, whatever its guest can spare; None: it can."""
    if not row.policy.max_bytes:
        return Reason.NO_BALLOON
    return Reason.AT_MAXIMUM if row.told_bytes >= row.policy.max_bytes else None


def _longer(hold_s: float, release_at_s: float | None, now_s: float) -> float:
    """How long to wait before the balloon shrinks by a step: ``hold_s``, or until the release that
    is due already (``release_at_s``) if that is later."""
    return hold_s if release_at_s is None else max(hold_s, release_at_s - now_s)
