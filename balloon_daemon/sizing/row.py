"""One VM of a host, as ``HostPolicy`` keeps it. Pure."""

import math
from dataclasses import dataclass, field

from balloon_daemon.sizing.balloon_policy import BalloonPolicy
from balloon_daemon.sizing.decision import Reason
from balloon_daemon.sizing.guard import Guard
from balloon_daemon.sizing.terms import Terms

BACK_S = 30.0
"""For so many seconds after its target was lowered, a balloon counts as giving memory back:
Linux's driver gives 1 GiB in less than a second, and with a tenth of a CPU in ten seconds."""


@dataclass(slots=True)
class Patience:
    """How often a VM has waited for VMs of other priorities.

    Attributes:
        waits_up: how often, at low memory, for VMs of lower priorities to give memory first.
        waited_at_s: when it last waited so at low memory; None: never.
        waits_down: how often, since low memory, for VMs of higher priorities to get memory back.
    """

    waits_up: int = 0
    waited_at_s: float | None = None
    waits_down: int = 0


@dataclass(slots=True)
class Row:
    """One VM: its policy, and what the sizing of its balloon depends on.

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
        patience: how often it has waited for VMs of other priorities.
        back_bytes: the size from which its balloon goes back to a target that was lowered; 0: it
            does not, or should have long since.
        back_until_s: until when ``back_bytes`` counts.
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
    patience: Patience = field(default_factory=Patience)
    back_bytes: int = 0
    back_until_s: float = -math.inf

    def tell(self, target_bytes: int, now_s: float) -> None:
        """Notes the target that the VM is sent."""
        if target_bytes < self.told_bytes:
            self.back_bytes = max(self.told_bytes, min(self.back_bytes, self.actual_bytes))
            self.back_until_s = now_s + BACK_S
        self.told_bytes = target_bytes
        if self.guard is not None:
            self.guard.told(target_bytes, now_s)

    @property
    def deadline_s(self) -> float:
        """The earliest of its deadlines; infinity where it has none.

        The policy's own are no deadlines of an adaptive VM: ``Adaptive`` looks at all of its VMs
        each second anyway.
        """
        if self.terms.is_adaptive:
            return math.inf if self.guard is None else self.guard.check_at_s
        state = self.policy.state()
        recheck_s, release_s = state.recheck_at_s, state.release_at_s
        return min(
            math.inf if recheck_s is None else recheck_s,
            math.inf if release_s is None else release_s,
            math.inf if self.guard is None else self.guard.check_at_s,
        )

    @property
    def latest_s(self) -> float:
        """Until when its deadlines may be served.

        A recheck that cannot change the target may be late, so that one wake serves the rechecks
        of several VMs. It may be late by half of its jitter: the rechecks of VMs that one wake has
        served come within one whole jitter the next time, so with a whole jitter they would be
        served together for ever, and with them more and more VMs.
        """
        policy = self.policy
        recheck_s, release_s = policy.state()[1:]
        if self.guard is not None or recheck_s is None or not self.is_full:
            return self.deadline_s
        latest_s = recheck_s + policy.settings.recheck_jitter_s / 2
        return latest_s if release_s is None else min(latest_s, release_s)

    @property
    def is_full(self) -> bool:
        """Whether low memory cannot raise its target, even if nothing is against a step up."""
        policy = self.policy
        return policy.level >= policy.settings.steps or not policy.max_bytes

    @property
    def priority(self) -> int:
        """The VM's priority: VMs of a higher priority are squeezed later."""
        return self.terms.settings.priority

    @property
    def is_held(self) -> bool:
        """Whether something was against a step up at the last low-memory event, other than other
        VMs' priorities."""
        return self.policy.held is not None and self.policy.held is not Reason.LOWER_FIRST

    @property
    def can_give(self) -> bool:
        """Whether the VM could step up at the last low-memory event, if other VMs' priorities did
        not matter."""
        return not self.is_held and not self.is_full
