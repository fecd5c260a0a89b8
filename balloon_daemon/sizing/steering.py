"""What operators ask of the policy. Pure."""

import math
from collections.abc import Callable, Mapping
from typing import assert_never

from balloon_daemon.errors import StateError
from balloon_daemon.sizing.decision import Reason
from balloon_daemon.sizing.host_events import (
    Asked,
    Paused,
    Reserved,
    Resumed,
    Steered,
    Unreserved,
    Wanted,
    Withdrawn,
)
from balloon_daemon.sizing.outcome import Outcome
from balloon_daemon.sizing.pauses import Pauses
from balloon_daemon.sizing.protection import Protection
from balloon_daemon.sizing.reclaims import Reclaims
from balloon_daemon.sizing.reserves import Reserves
from balloon_daemon.sizing.row import Row
from balloon_daemon.units import VmId


class Steering:
    """The pauses, reclaims and reserves of a host.

    Args:
        rows: the VMs.
        protection: the careful VMs' protection.
        recheck_s: how often the policy asks a VM for more, while memory is low.
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
        self.pauses = Pauses(rows)
        self.reclaims = Reclaims(rows, protection, recheck_s, objection)
        self.reserves = Reserves(rows, recheck_s)
        self.next_s = math.inf
        """When ``pass_time`` has something to do; infinity: never."""

    def take(self, event: Steered, outcome: Outcome, *, halted: bool) -> None:
        """Handles what an operator asks. Raises StateError: one of its VMs is not known."""
        match event:
            case Asked(vm, balloon_bytes, hold_s):
                row = self._rows_of((vm,))[vm]
                if not halted:
                    why = Reason.ASKED
                    self._protection.settle(vm, row, balloon_bytes, why, hold_s, outcome)
            case Paused(vms):
                rows = self._rows_of(vms)
                if not halted:
                    self.pauses.begin(event, rows, outcome)
            case Resumed():
                self.pauses.end(event)
            case Wanted():
                self._rows_of(event.vms)
                if not halted:
                    self.reclaims.begin(event, outcome)
            case Reserved():
                if not halted:
                    self.reserves.begin(event, outcome)
            case Unreserved():
                self.reserves.end_all(outcome)
            case Withdrawn(ticket):
                self.reserves.withdraw(ticket, outcome)
                self.reclaims.withdraw(ticket, outcome)
            case _:
                assert_never(event)
        self._queue()

    def pass_time(self, outcome: Outcome) -> None:
        """Goes on with the pauses, reclaims and reserves, if something is due."""
        # Compare times first: this method is called for each MiB of any guest's balloon.
        if self.next_s <= outcome.now_s:
            self.pauses.pass_time(outcome)
            self.reclaims.pass_time(outcome)
            self.reserves.pass_time(outcome)
            self._queue()

    def remove(self, vm: VmId) -> None:
        """Forgets a VM."""
        self.pauses.remove(vm)
        self.reclaims.remove(vm)
        self._queue()

    def halt(self, outcome: Outcome) -> None:
        """Ends all pauses, reclaims and reserves, because balloond ends."""
        self.pauses.clear()
        self.reclaims.halt(outcome)
        self.reserves.halt(outcome)
        self._queue()

    def _queue(self) -> None:
        self.next_s = min(self.pauses.next_s, self.reclaims.next_s, self.reserves.next_s)

    def _rows_of(self, vms: tuple[VmId, ...]) -> Mapping[VmId, Row]:
        """The rows of some VMs; of all where none is named."""
        for vm in vms:
            if vm not in self._rows:
                raise StateError(f"{vm} has no policy")
        return {vm: self._rows[vm] for vm in vms} if vms else self._rows
