"""The scores of a sizing policy: what its host lacked, what its guests lost, what it did. Pure."""

import math
from dataclasses import dataclass, fields
from typing import NamedTuple

from balloon_daemon.units import MIB, VmId

REVERSAL_S = 10.0
"""A target that is changed the other way within this time counts as a reversal: one of the two
changes was wrong."""

LATE_S = 5.0
"""A policy that gives memory back within this time after the guest was short of memory counts as
having done so for that reason: statistics come late."""

SAME_BYTES = MIB
"""A balloon this near to its target has reached it."""


@dataclass(slots=True)
class Scores:
    """The scores, for all VMs together. Less is better of all but ``least_available_mib``.

    Attributes:
        seconds: how long the time was.
        low_s: for how long less was available than the margin.
        least_available_mib: the least that was available.
        unmet_gib_s: the memory that the host's programs and guests wanted beyond all that it has,
            in GiB times seconds. On a real host, memory is swapped out or processes are killed.
        gib_minutes: the balloons' sizes, each in GiB times the minutes for which it had that size.
        need_s: for how long guests were in need, by the model, not by what the policy saw.
        stall_s: the time that guests lost by waiting for memory.
        steps: changes of targets.
        reversals: changes of a VM's target in the direction opposite to its change less than 10 s
            before. Not counted are memory that goes back to a guest that was short of it, and a
            target that is lowered only to what its balloon has reached, which gives nothing back.
        oom_kills: processes that guests killed for lack of memory.
    """

    seconds: float = 0.0
    low_s: float = 0.0
    least_available_mib: float = math.inf
    unmet_gib_s: float = 0.0
    gib_minutes: float = 0.0
    need_s: float = 0.0
    stall_s: float = 0.0
    steps: int = 0
    reversals: int = 0
    oom_kills: int = 0

    def __add__(self, other: "Scores") -> "Scores":
        """The sum of each score over both runs, also of ``least_available_mib``."""
        names = [field.name for field in fields(self)]
        return Scores(**{name: getattr(self, name) + getattr(other, name) for name in names})


class Fared(NamedTuple):
    """A guest's state in a short time.

    Attributes:
        balloon_bytes: the size of its balloon.
        stall: the share of its time that its programs lost by waiting for memory.
        in_need: whether it was in need, by the model.
        is_short: whether it lost any time, or had little memory available.
    """

    balloon_bytes: int
    stall: float
    in_need: bool
    is_short: bool


@dataclass(slots=True)
class _Vm:
    target_bytes: int = 0
    went_up: bool | None = None
    moved_at_s: float = -math.inf
    short_at_s: float = -math.inf


class Scorer:
    """Adds up the scores of one run."""

    def __init__(self) -> None:
        self.scores = Scores()
        self._vms: dict[VmId, _Vm] = {}

    def host(self, before_mib: float, after_mib: float, margin_mib: float, seconds: float) -> None:
        """Notes how much memory the host had available during some time.

        Args:
            before_mib: what was available at the beginning; below 0: by how much the wanted memory
                exceeded the host's.
            after_mib: what was available at the end; it changed evenly in between.
            margin_mib: with less available than this, memory is low.
            seconds: how long the time was.
        """
        scores = self.scores
        scores.seconds += seconds
        least_mib = min(before_mib, after_mib)
        scores.least_available_mib = min(scores.least_available_mib, max(0.0, least_mib))
        if least_mib >= margin_mib:
            return
        scores.low_s += seconds * _share_below(margin_mib, before_mib, after_mib)
        if least_mib < 0:
            missing_mib = min(0.0, before_mib) + min(0.0, after_mib)
            scores.unmet_gib_s -= missing_mib / 2 / 1024 * seconds

    def guest(self, vm: VmId, fared: Fared, now_s: float, seconds: float) -> None:
        """Notes a guest's state during some time.

        Args:
            vm: the VM.
            fared: the state.
            now_s: the clock at the end of the time.
            seconds: how long the time was.
        """
        scores = self.scores
        scores.gib_minutes += fared.balloon_bytes / (1024 * MIB) * seconds / 60
        scores.stall_s += fared.stall * seconds
        if fared.in_need:
            scores.need_s += seconds
        if fared.is_short:
            self._vm(vm).short_at_s = now_s

    def told(self, vm: VmId, target_bytes: int, balloon_bytes: int, now_s: float) -> None:
        """Notes a target that a VM was sent."""
        scores, row = self.scores, self._vm(vm)
        before, row.target_bytes = row.target_bytes, target_bytes
        if target_bytes == before:
            return
        scores.steps += 1
        up = target_bytes > before
        if not up and target_bytes >= balloon_bytes - SAME_BYTES:
            return
        helps = not up and now_s - row.short_at_s <= LATE_S
        soon = now_s - row.moved_at_s < REVERSAL_S
        if row.went_up is not None and row.went_up is not up and soon and not helps:
            scores.reversals += 1
        row.went_up, row.moved_at_s = up, now_s

    def _vm(self, vm: VmId) -> _Vm:
        return self._vms.setdefault(vm, _Vm())


def _share_below(limit: float, one: float, other: float) -> float:
    """The share of the way from one number to another that is below a limit."""
    low, high = min(one, other), max(one, other)
    return 1.0 if high <= limit else (limit - low) / (high - low)
