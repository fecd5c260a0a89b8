"""One VM of a host, as ``HostPolicy`` keeps it. Pure."""

import math
from dataclasses import dataclass

from balloon_daemon.sizing.balloon_policy import BalloonPolicy
from balloon_daemon.sizing.decision import Reason
from balloon_daemon.sizing.guard import Guard
from balloon_daemon.sizing.terms import Terms


@dataclass(slots=True)
class Row:
    """One VM.

    Attributes:
        policy: its policy.
        vm_mem_bytes: its size.
        terms: its settings and abilities.
        actual_bytes: its balloon's size, as its driver reports it.
        told_bytes: the target that it was sent last.
        last_reason: the reason of its last decision other than ``Reason.RECHECK``.
        moved_at_s: when the balloon's size last changed or a target was last sent.
        moved_to_bytes: the balloon's size after it last changed.
        most_bytes: the balloon's largest size since a target was sent.
        queued_at_s: the time of its entry among the deadlines; infinity: it has no entry.
        guard: protects its guest; None: its profile is ``Profile.SEED``.
        watched_s: how often its figures are read; infinity: never.
    """

    policy: BalloonPolicy
    vm_mem_bytes: int
    terms: Terms
    actual_bytes: int = 0
    told_bytes: int = 0
    last_reason: Reason | None = None
    moved_at_s: float = -math.inf
    moved_to_bytes: int = 0
    most_bytes: int = 0
    queued_at_s: float = math.inf
    guard: Guard | None = None
    watched_s: float = math.inf

    @property
    def deadline_s(self) -> float:
        """The earliest of its deadlines; infinity where it has none."""
        state = self.policy.state()
        recheck_s, release_s = state.recheck_at_s, state.release_at_s
        return min(
            math.inf if recheck_s is None else recheck_s,
            math.inf if release_s is None else release_s,
            math.inf if self.guard is None else self.guard.check_at_s,
        )

    @property
    def priority(self) -> int:
        """The VM's priority: VMs of a higher priority are squeezed later."""
        return self.terms.settings.priority

    @property
    def can_give(self) -> bool:
        """Whether the VM could step up at the last low-memory event, if other VMs' priorities did
        not matter."""
        policy = self.policy
        free = policy.held is None or policy.held is Reason.LOWER_FIRST
        return free and policy.max_bytes > 0 and policy.level < policy.settings.steps
