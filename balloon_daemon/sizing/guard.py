"""What protects one guest: everything that speaks against squeezing it further. Pure.

Theory of operation
    ===========  ===============================  ==============================================
    finding      seen by                          answer
    ===========  ===============================  ==============================================
    in need      statistics (``need``), a         all of its balloon back at once; left alone for
                 balloon that shrinks by itself   a time that doubles, and until it has not been
                                                  in need for 30 s
    stalled      no progress (``stall``)          the target becomes what was reached; no more is
                                                  asked for for a time that doubles
    contested    a balloon that grows by itself,  no targets are sent for a time that doubles;
                 or keeps shrinking without need  then its size is taken as it is
    not freed    the host's figures (``proof``)   no more is asked for while that lasts
    ===========  ===============================  ==============================================

    A guest that stands still, or in which no driver listens, is in none of these states. One whose
    statistics have stopped coming is squeezed no further. One that never sent any is squeezed at
    the policy's pace, under the floor for VMs that nobody sees (``terms``).
"""

import math

from balloon_daemon.sizing.back_off import BackOff
from balloon_daemon.sizing.decision import (
    Balance,
    Contested,
    Finding,
    InNeed,
    Reason,
    Sign,
    Stalled,
)
from balloon_daemon.sizing.drift import Bearing, Drift
from balloon_daemon.sizing.need import FRESH_S, STALE_S, Figures, NeedRule
from balloon_daemon.sizing.proof import Proof
from balloon_daemon.sizing.stall import Progress

HOLD_S = 30.0
"""A guest is squeezed again only when it has not been in need for so long."""

RETURNS = 2
"""A balloon that shrinks by itself so often in a row, while fresh statistics show no need, has
another controller."""


class Guard:
    """One guest's protection.

    Args:
        sends_stats: whether its driver can send statistics.
    """

    def __init__(self, *, sends_stats: bool) -> None:
        self._need = NeedRule()
        self._progress = Progress()
        self._bearing = Bearing()
        self.proof = Proof()
        self.waits = {
            reason: BackOff() for reason in (Reason.CONTESTED, Reason.IN_NEED, Reason.STALLED)
        }
        self.signs = frozenset[Sign]()
        """What showed at the last look that it is in need."""
        self._need_seen_s = -math.inf
        self._runs = True
        self._sends_stats = sends_stats
        self._watched_since_s: float | None = None
        self._returns = 0
        self.left: Reason | None = None
        """Why its balloon was left to it, or to somebody else: when it is squeezed again, it goes
        on from the size that the balloon has by then."""

    # --- what happens to it -------------------------------------------------------------------

    def told(self, target_bytes: int, now_s: float) -> None:
        """Notes a target that was sent."""
        self._progress.told(target_bytes, now_s)
        self._bearing.told(target_bytes, now_s)

    def moved(self, balloon_bytes: int, now_s: float) -> Drift | None:
        """Notes the balloon's size; answers where it has gone by itself."""
        self._progress.moved(balloon_bytes, now_s)
        drift = self._bearing.moved(balloon_bytes, now_s)
        # While no targets are sent the balloon goes where somebody else wants it.
        return drift if self._runs and self.left is not Reason.CONTESTED else None

    def took(self, figures: Figures, *, squeezed: bool) -> None:
        """Notes the guest's statistics."""
        self._need.take(figures, squeezed=squeezed)

    def ran(self, now_s: float, *, runs: bool) -> None:
        """Notes whether the guest runs and its driver listens."""
        self._runs = runs
        self._need.forget()
        self.signs = frozenset()
        self._progress.stop(now_s, stopped=not runs)
        self._bearing.begin_anew(now_s)
        if self._watched_since_s is not None:
            self._watched_since_s = now_s

    def watched(self, now_s: float, *, closely: bool) -> None:
        """Notes whether it is asked for statistics each second."""
        if not closely:
            self._watched_since_s = None
        elif self._watched_since_s is None:
            self._watched_since_s = now_s

    # --- what follows -------------------------------------------------------------------------

    @property
    def check_at_s(self) -> float:
        """When to ``judge`` if nothing happens before; infinity: never."""
        return min(self._progress.check_at_s, self._bearing.check_at_s) if self._runs else math.inf

    def left_alone_s(self, now_s: float) -> float:
        """For how many seconds more it is asked for no more, whatever else happens."""
        until_s = max(wait.until_s for wait in self.waits.values())
        return max(0.0, until_s - now_s, self._need_seen_s + HOLD_S - now_s)

    @property
    def stats_at_s(self) -> float | None:
        """When it sent its last statistics; None: never."""
        return self._need.last_at_s

    def is_blind(self, now_s: float) -> bool:
        """Whether nobody would notice that it is in need: it sends no statistics at all, or none
        that say how much is available."""
        if self._need.last_at_s is not None:
            return not self._need.knows_available(now_s)
        return not self._sends_stats or self._is_late(now_s)

    def objection(self, now_s: float) -> Reason | None:
        """Why it must not be asked for more just now; None: it may be."""
        if not self._runs:
            return Reason.NOT_RUNNING
        if now_s - self._need_seen_s < HOLD_S:
            return Reason.IN_NEED
        for reason, wait in self.waits.items():
            if wait.lasts(now_s):
                return reason
        if self.proof.missing_bytes:
            return Reason.FRUITLESS
        stale = self._need.last_at_s is not None and self._is_late(now_s)
        return Reason.NO_FRESH_STATS if stale else None

    def judge(
        self,
        vm_mem_bytes: int,
        target_bytes: int,
        balloon_bytes: int,
        now_s: float,
        drift: Drift | None = None,
    ) -> list[Finding]:
        """What is to be done about the guest.

        Args:
            vm_mem_bytes: the VM's size.
            target_bytes: the target that it was sent last.
            balloon_bytes: its balloon's size.
            now_s: the clock.
            drift: where its balloon has just gone by itself.
        """
        drift = drift or self._bearing.gone(now_s)
        stuck = self._progress.is_stuck(now_s)
        stalled = self._progress.is_stalled(now_s)
        self.signs = self._need.signs(now_s, vm_mem_bytes, stuck=stuck)
        contested = drift is Drift.GROWN
        if drift is Drift.SHRUNK:
            self._returns = 0 if self.signs or not self._is_fresh(now_s) else self._returns + 1
            contested = self._returns >= RETURNS
            self.signs |= {Sign.TOOK_BACK}
        if self.signs:
            self._need_seen_s = now_s
        findings: list[Finding] = []
        if self.signs and target_bytes and drift is not Drift.GROWN:
            self.left = Reason.IN_NEED
            left_alone_s = self.waits[Reason.IN_NEED].begin(now_s)
            findings.append(InNeed(self.signs, balloon_bytes, left_alone_s))
        if contested:
            self.left, self._returns = Reason.CONTESTED, 0
            left_alone_s = self.waits[Reason.CONTESTED].begin(now_s)
            findings.append(Contested(target_bytes, balloon_bytes, left_alone_s))
        if stalled and not findings:
            left_alone_s = self.waits[Reason.STALLED].begin(now_s)
            findings.append(Stalled(target_bytes, balloon_bytes, left_alone_s))
        return findings

    def measured(
        self, held_bytes: int, vm_mem_bytes: int, balloon_bytes: int, now_s: float
    ) -> Balance | None:
        """Notes what the VM's memory occupies; answers a change of what the host has got."""
        missing = self.proof.take(held_bytes, vm_mem_bytes, balloon_bytes, now_s)
        if missing is None:
            return None
        return Balance(missing, self.proof.missing_bytes, balloon_bytes)

    def _is_fresh(self, now_s: float) -> bool:
        last_at_s = self._need.last_at_s
        return last_at_s is not None and now_s - last_at_s <= FRESH_S

    def _is_late(self, now_s: float) -> bool:
        """Whether statistics are missing that it was asked for long enough ago."""
        if self._watched_since_s is None:
            return False
        last_at_s = self._need.last_at_s
        since_s = self._watched_since_s
        return now_s - (since_s if last_at_s is None else max(last_at_s, since_s)) > STALE_S
