"""Protects the guests of careful VMs: takes their reports, and changes their targets. Pure.

``guard`` makes findings about one guest; ``Protection`` applies them to the guest's policy. It
also has each guest's figures read each second while the guest is squeezed, and while the host is
about to be low on memory. A *careful* VM is one with any profile but ``Profile.SEED``; VMs with
that profile are not protected.
"""

import math
from dataclasses import replace
from typing import assert_never

from balloon_daemon.sizing.decision import (
    Contested,
    Finding,
    InNeed,
    NeverLow,
    Reading,
    Reason,
    Stalled,
)
from balloon_daemon.sizing.guard import Guard
from balloon_daemon.sizing.host_events import Measured, Moved, Ran, Sampled, Seen
from balloon_daemon.sizing.outcome import Outcome
from balloon_daemon.sizing.row import Row
from balloon_daemon.units import PAGE_SIZE, VmId

CLOSE_S = 1.0
"""How often a guest's figures are read while it is squeezed, or soon may be."""

SELDOM_S = 30.0
"""How often a guest's figures are read otherwise. The statistics are cumulative counters, so rare
readings give exact means too."""

NEAR, FAR = 1.5, 2.0
"""Memory is about to be low when less than 1.5 times the margin is available, and from then on
until twice the margin is available."""

SOON, NOT_SOON = 2.5, 3.0
"""The same as ``NEAR`` and ``FAR``, in multiples of the margin, for adaptive VMs. They may be
asked for memory with up to twice the margin available (``adaptive``), by figures that are to be of
the same second."""


class Protection:
    """Protects all VMs of a host but those with ``Profile.SEED``."""

    def __init__(self) -> None:
        self._rows: dict[VmId, Row] = {}
        # Whether memory is about to be low: for VMs that are not adaptive (False), for adaptive
        # ones.
        self._near = {False: False, True: False}
        # Whether memory is about to be low neither for adaptive VMs nor for the others.
        self._is_far = True

    def add(self, vm: VmId, row: Row, outcome: Outcome) -> None:
        """Begins to protect a VM; does nothing for a VM whose profile is ``Profile.SEED``. If the
        VM was sent a target before, the caller tells it to ``row.guard`` afterwards."""
        if row.terms.is_careful:
            row.guard = Guard(sends_stats=row.terms.sends_stats)
            row.guard.moved(row.actual_bytes, outcome.now_s)
            self._rows[vm] = row
            self._pace(vm, row, row.guard, outcome)

    def remove(self, vm: VmId) -> None:
        """Forgets a VM."""
        self._rows.pop(vm, None)

    def end(self, vm: VmId, row: Row, outcome: Outcome) -> None:
        """Ends the protection of a VM whose new settings have the profile seed."""
        self.remove(vm)
        row.guard, row.watched_s, row.policy.held = None, math.inf, None
        outcome.watch(vm, None)

    def take(self, event: Moved | Sampled | Ran | Measured, row: Row, outcome: Outcome) -> None:
        """Handles a report of a VM's guest."""
        guard, vm, now_s = row.guard, event.vm, outcome.now_s
        drift = None
        if isinstance(event, Moved):
            row.actual_bytes = event.balloon_bytes
            if guard is not None:
                drift = guard.moved(event.balloon_bytes, now_s)
                if drift is None:
                    # Nothing to judge: this event comes for each MiB of a balloon.
                    outcome.queue(vm, row)
                    return
        if guard is None:
            return
        match event:
            case Moved():
                pass
            case Sampled(_, figures):
                squeezed = bool(row.told_bytes or row.actual_bytes)
                # With a time in the future these statistics would count as fresh until then, and
                # all statistics that come before then would be ignored as older.
                at_s = min(figures.at_s, now_s)
                guard.took(figures._replace(at_s=at_s), squeezed=squeezed)
            case Ran(_, runs):
                guard.ran(now_s, runs=runs)
            case Measured(_, held_bytes):
                size, balloon = row.vm_mem_bytes, row.actual_bytes
                balance = guard.measured(held_bytes, size, balloon, now_s)
                if balance is not None:
                    outcome.find(vm, balance)
                return
            case _:
                assert_never(event)
        size, told, actual = row.vm_mem_bytes, row.told_bytes, row.actual_bytes
        self._answer(vm, row, guard.judge(size, told, actual, now_s, drift), outcome)

    def judge(self, vm: VmId, row: Row, guard: Guard, outcome: Outcome) -> None:
        """Looks at a guest whose ``check_at_s`` has come."""
        size, told, actual = row.vm_mem_bytes, row.told_bytes, row.actual_bytes
        self._answer(vm, row, guard.judge(size, told, actual, outcome.now_s), outcome)

    def objection(self, vm: VmId, row: Row, guard: Guard, outcome: Outcome) -> Reason | None:
        """Why a guest must not be asked for more now that memory is low; None: it may be asked."""
        self._see(vm, row, guard, outcome)
        reason = guard.objection(outcome.now_s)
        if reason is None and guard.left is not None:
            guard.left = None
            self._resume(vm, row, outcome)
        return reason

    def ignores(self, reading: Reading) -> bool:
        """Whether ``saw`` would change nothing, as low memory is as far away as it was."""
        return self._is_far and reading.available_mib >= reading.margin_mib * SOON

    def saw(self, seen: Seen, outcome: Outcome) -> None:
        """Notes how far from low memory the host is."""
        before = dict(self._near)
        for adaptive, (near, far) in {False: (NEAR, FAR), True: (SOON, NOT_SOON)}.items():
            if isinstance(seen, Reading):
                least_mib = seen.margin_mib * (far if before[adaptive] else near)
                self._near[adaptive] = seen.available_mib < least_mib
            elif isinstance(seen, NeverLow):
                self._near[adaptive] = False
        if before != self._near:
            self._is_far = not any(self._near.values())
            for vm, row in self._rows.items():
                if row.guard is not None:
                    self._pace(vm, row, row.guard, outcome)

    def settle(
        self,
        vm: VmId,
        row: Row,
        balloon_bytes: int,
        reason: Reason,
        hold_s: float | None,
        outcome: Outcome,
    ) -> None:
        """Makes the size that an operator asks for the target, of any VM (``Outcome.settle``)."""
        outcome.settle(vm, row, balloon_bytes, reason, hold_s)
        if row.guard is not None:
            # Have the balloon's size read each second: read seldom, it would look as if it did not
            # grow.
            self._pace(vm, row, row.guard, outcome)

    # --- acting on findings -------------------------------------------------------------------

    def _answer(self, vm: VmId, row: Row, findings: list[Finding], outcome: Outcome) -> None:
        guard = row.guard
        assert guard is not None
        self._see(vm, row, guard, outcome)
        for finding in findings:
            outcome.find(vm, finding)
            match finding:
                case InNeed():
                    outcome.settle(vm, row, 0, Reason.IN_NEED)
                    row.policy.held = Reason.IN_NEED
                case Stalled():
                    outcome.settle(vm, row, _reached(row), Reason.STALLED)
                    row.policy.held = Reason.STALLED
                case Contested():
                    outcome.leave(vm, row, Reason.CONTESTED)
                    row.policy.held = Reason.CONTESTED
        self._pace(vm, row, guard, outcome)
        outcome.queue(vm, row)

    def _resume(self, vm: VmId, row: Row, outcome: Outcome) -> None:
        """Makes the present size of a balloon, for which no targets were sent for a time, the
        target."""
        reached = _reached(row)
        if reached != row.told_bytes:
            outcome.settle(vm, row, reached, Reason.ADOPTED)

    def _see(self, vm: VmId, row: Row, guard: Guard, outcome: Outcome) -> None:
        """Changes the memory that a guest keeps (``terms.BLIND_BYTES``), where the guest turns out
        to send no statistics, or to send some."""
        blind = guard.is_blind(outcome.now_s)
        if blind is not row.terms.sends_stats:
            return
        row.terms = replace(row.terms, sends_stats=not blind)
        max_bytes = row.terms.max_bytes(row.vm_mem_bytes)
        if max_bytes != row.policy.max_bytes:
            step = row.policy.resize(max_bytes)
            decision = step.decision._replace(reason=Reason.LIMITS_CHANGED)
            outcome.take(vm, row, step._replace(decision=decision), min(max_bytes, row.told_bytes))

    def _pace(self, vm: VmId, row: Row, guard: Guard, outcome: Outcome) -> None:
        """Sets how often the driver reads a guest's size and statistics: each second while memory
        is taken from the guest or soon will be, else seldom."""
        close = self._near[row.terms.is_adaptive] or row.told_bytes > 0
        every_s = CLOSE_S if close else SELDOM_S
        if every_s != row.watched_s:
            row.watched_s = every_s
            guard.watched(outcome.now_s, closely=close)
            outcome.watch(vm, every_s)


def _reached(row: Row) -> int:
    """A balloon's size as a target: whole pages, and no more than the maximum."""
    return min(row.actual_bytes // PAGE_SIZE * PAGE_SIZE, row.policy.max_bytes)
