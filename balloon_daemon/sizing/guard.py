"""Decides when one guest must be asked for no more memory, or get its memory back. Pure.

Theory of operation
    ===========  ===============================  ==============================================
    finding      seen by                          answer
    ===========  ===============================  ==============================================
    in need      statistics (``need``), or a      all of its balloon back at once; left alone for
                 balloon that shrinks by itself   a time that doubles, and until it has not been
                                                  in need for 30 s
    stalled      no progress (``stall``)          the balloon's size becomes the target; no further
                                                  step up for a time that doubles
    contested    a balloon that grows by itself,  no targets are sent for a time that doubles;
                 or shrinks again and again       then the balloon's size becomes the target
                 without need: somebody else
                 drives it
    not freed    the host's figures (``proof``)   no step up while memory is missing
    ===========  ===============================  ==============================================

    None of this is found of a guest that is paused, or has no driver that listens. A guest is
    *squeezed* while its balloon holds memory or is to hold some. One whose statistics have stopped
    coming is squeezed no further. One that never sent statistics is squeezed at the policy's pace,
    down to the floor for guests without statistics (``terms``).
"""

import math

from balloon_daemon.named_tuple import NamedTuple
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
"""A guest is squeezed again only after so many seconds without need."""

LATE_S = 40.0
"""Statistics older than this no longer show what a guest can spare. A guest that is not squeezed
is asked each 30 s (``protection``), and answers some seconds later at most."""

RETURNS = 2
"""A balloon that shrinks by itself so many times in a row, while fresh statistics show no need, is
taken for contested: another controller sets its targets."""


WAITS = (Reason.CONTESTED, Reason.IN_NEED, Reason.STALLED)
"""The reasons for which a guest may be left alone for a time that doubles (``BackOff``)."""


class Lasting(NamedTuple):
    """What a guard remembers for long, with which another guard can go on.

    A guard's windows of a few seconds are not in it: the next figures fill them again.

    Attributes:
        waits: the waits that were begun, each with its end and its length in seconds.
        need_seen_s: when the guest was in need last; None: never.
        left: why balloond does not set the balloon's size, as ``Guard.left`` says; None: it does.
        bases: the guest's usual disk reads and major faults, each a second.
        missing_bytes: how much of the balloon the host has not got.
    """

    waits: tuple[tuple[Reason, float, float], ...]
    need_seen_s: float | None
    left: Reason | None
    bases: tuple[float, float]
    missing_bytes: int


class Guard:
    """Protects one guest: finds that the guest is in need, stalled, contested or not freed, and
    says why it must not be asked for more memory.

    Args:
        sends_stats: whether its driver can send statistics.
    """

    def __init__(self, *, sends_stats: bool) -> None:
        self._need = NeedRule()
        self._progress = Progress()
        self._bearing = Bearing()
        self.proof = Proof()
        self.waits = {reason: BackOff() for reason in WAITS}
        self.signs = frozenset[Sign]()
        """The signs of need that the last ``judge`` found; empty: the guest was not in need."""
        self._need_seen_s = -math.inf
        self._runs = True
        self._sends_stats = sends_stats
        self._watched_since_s: float | None = None
        self._returns = 0
        self.left: Reason | None = None
        """Why balloond does not set the balloon's size: IN_NEED (the guest takes its memory back)
        or CONTESTED (somebody else sets the size); None: balloond sets it. The next squeeze begins
        with the size that the balloon has by then."""

    def lasting(self) -> Lasting:
        """What this guard remembers for long, for another guard's ``resume``."""
        states = ((reason, *wait.state()) for reason, wait in self.waits.items())
        return Lasting(
            tuple(state for state in states if math.isfinite(state[1])),
            self._need_seen_s if math.isfinite(self._need_seen_s) else None,
            self.left,
            self._need.bases,
            self.proof.missing_bytes,
        )

    def resume(self, lasting: Lasting) -> None:
        """Goes on from what another guard remembers."""
        for reason, *state in lasting.waits:
            self.waits[reason].resume((state[0], state[1]))
        if lasting.need_seen_s is not None:
            self._need_seen_s = lasting.need_seen_s
        self.left = lasting.left
        self._need.resume(lasting.bases)
        self.proof.missing_bytes = lasting.missing_bytes

    # --- reports about the guest --------------------------------------------------------------

    def told(self, target_bytes: int, now_s: float) -> None:
        """Notes a target that was sent."""
        self._progress.told(target_bytes, now_s)
        self._bearing.told(target_bytes, now_s)

    def moved(self, balloon_bytes: int, now_s: float) -> Drift | None:
        """Notes the balloon's size; returns how the balloon has changed by itself, or None."""
        self._progress.moved(balloon_bytes, now_s)
        drift = self._bearing.moved(balloon_bytes, now_s)
        # While the balloon is contested no targets are sent, and a change of its size is not the
        # guest's doing.
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
        """Notes whether the guest is asked for statistics each second."""
        if not closely:
            self._watched_since_s = None
        elif self._watched_since_s is None:
            self._watched_since_s = now_s

    # --- conclusions --------------------------------------------------------------------------

    @property
    def runs(self) -> bool:
        """Whether the guest runs, and its driver listens."""
        return self._runs

    @property
    def check_at_s(self) -> float:
        """When to call ``judge`` if no report comes before; infinity: never."""
        return min(self._progress.check_at_s, self._bearing.check_at_s) if self._runs else math.inf

    def left_alone_s(self, now_s: float) -> float:
        """For how many more seconds the guest is surely not asked for more memory."""
        until_s = max(wait.until_s for wait in self.waits.values())
        return max(0.0, until_s - now_s, self._need_seen_s + HOLD_S - now_s)

    @property
    def stats_at_s(self) -> float | None:
        """When the guest sent its last statistics; None: never."""
        return self._need.last_at_s

    def known(self, now_s: float) -> Figures | None:
        """The guest's last statistics, if they still show what it can spare (``LATE_S``)."""
        last = self._need.last
        return None if last is None or now_s - last.at_s > LATE_S else last

    @property
    def reads_cache(self) -> bool:
        """Whether the guest reads from its disks as one does whose page cache is too small."""
        return self._need.reads_cache

    def is_blind(self, now_s: float) -> bool:
        """Whether need of the guest would not be noticed: it sends no statistics, or statistics
        without the available memory."""
        if self._need.last_at_s is not None:
            return not self._need.knows_available(now_s)
        return not self._sends_stats or self._is_late(now_s)

    def objection(self, now_s: float) -> Reason | None:
        """Why the guest must not be asked for more memory now; None: it may be asked."""
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
        """Judges the guest by its statistics and by its balloon's size.

        Args:
            vm_mem_bytes: the VM's size.
            target_bytes: the target that it was sent last.
            balloon_bytes: its balloon's size.
            now_s: the present time.
            drift: how its balloon has just changed by itself; None: it has not.

        Returns:
            The findings, each of which the caller has to act on.
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
        """Notes how much host memory the VM occupies. Returns whether the balloon's memory is
        missing on the host, if that has changed; else None."""
        missing = self.proof.take(held_bytes, vm_mem_bytes, balloon_bytes, now_s)
        if missing is None:
            return None
        return Balance(missing, self.proof.missing_bytes, balloon_bytes)

    def _is_fresh(self, now_s: float) -> bool:
        last_at_s = self._need.last_at_s
        return last_at_s is not None and now_s - last_at_s <= FRESH_S

    def _is_late(self, now_s: float) -> bool:
        """Whether the guest has sent no statistics for ``STALE_S`` although it was asked each
        second."""
        if self._watched_since_s is None:
            return False
        last_at_s = self._need.last_at_s
        since_s = self._watched_since_s
        return now_s - (since_s if last_at_s is None else max(last_at_s, since_s)) > STALE_S
