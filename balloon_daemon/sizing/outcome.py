"""Collects the results of one step of ``HostPolicy``. Pure."""

import math

from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.sizing.balloon_policy import SetTarget, Step
from balloon_daemon.sizing.deadlines import Deadlines
from balloon_daemon.sizing.decision import Decision, Finding, Reading, Reason
from balloon_daemon.sizing.host_events import (
    HostStep,
    Over,
    Target,
    VmDecision,
    VmFinding,
    Watch,
)
from balloon_daemon.sizing.priorities import Priorities
from balloon_daemon.sizing.row import Row
from balloon_daemon.units import PAGE_SIZE, VmId

_CHANGES_NOTHING = {
    Reason.AT_MAXIMUM,
    Reason.NO_BALLOON,
    Reason.FRUITLESS,
    Reason.NO_ROOM,
    Reason.LOWER_FIRST,
    Reason.NOTHING_TO_SPARE,
    Reason.ENOUGH_ASKED,
    Reason.JUST_LOWERED,
    Reason.IN_NEED,
    Reason.STALLED,
    Reason.CONTESTED,
    Reason.NO_FRESH_STATS,
    Reason.NOT_RUNNING,
    Reason.PAUSED,
}


class Why(NamedTuple):
    """Why an adaptive VM's target is what it is.

    Attributes:
        reason: the reason.
        reading: the host's reading; None: it has none.
        aim_mib: how much is to be available; None: low memory is switched off.
        needed_mib: what had to be available for giving memory back; None: no memory was to go
            back.
    """

    reason: Reason
    reading: Reading | None
    aim_mib: int | None
    needed_mib: int | None = None


class Outcome:
    """The targets, decisions and findings of a step.

    Args:
        deadlines: takes the deadlines of VMs whose policies were stepped.
        priorities: tells which VMs are asked for memory first.
        now_s: the step's time.
    """

    def __init__(self, deadlines: Deadlines, priorities: Priorities, now_s: float) -> None:
        self._deadlines = deadlines
        self._priorities = priorities
        self.now_s = now_s
        self._targets: list[Target] = []
        self._decisions: list[VmDecision] = []
        self._findings: list[VmFinding] = []
        self._watches: list[Watch] = []
        self._over: list[Over] = []
        self._stuck: list[VmId] = []
        self._lowest: tuple[int | None] | None = None

    @property
    def lowest_that_can_give(self) -> int | None:
        """The lowest priority of a VM whose balloon could be enlarged by a step; None: no VM's
        could, or all priorities are equal.

        Computed once, before the first VM is stepped: a VM of a higher priority steps up in a
        later step at the earliest, if memory is still low after VMs of the lowest priority have
        stepped up.
        """
        if self._lowest is None:
            self._lowest = (self._priorities.lowest_that_can_give(),)
        return self._lowest[0]

    def tell(self, vm: VmId, row: Row, target_bytes: int) -> None:
        """Sends a VM its target."""
        row.tell(target_bytes, self.now_s)
        self._targets.append(Target(vm, target_bytes))

    def take(self, vm: VmId, row: Row, step: Step, target_bytes: int | None = None) -> None:
        """Collects the targets and the decision of a policy's step. Its actions for timers and for
        listening are ignored, because the policy's state contains both.

        Args:
            vm: the VM.
            row: the VM's policy, size and target.
            step: the step of its policy.
            target_bytes: the target to send in place of the level's; None: send the level's.
        """
        for action in step.actions:
            if isinstance(action, SetTarget):
                told = action.target_bytes if target_bytes is None else target_bytes
                self.tell(vm, row, told)
                row.moved_at_s, row.most_bytes = self.now_s, row.actual_bytes
        decision = step.decision
        reason = decision.reason
        if reason is Reason.ALL_RETURNED and row.told_bytes:
            # At level 0 the target may still be above 0: ``settle`` has made a balloon's size the
            # target that was below the target of level 1.
            self.tell(vm, row, 0)
        changed = decision.level != decision.level_before
        repeated = reason in _CHANGES_NOTHING and reason is row.last_reason and not changed
        if reason is not Reason.RECHECK:
            row.last_reason = reason
        if decision.target_bytes != row.told_bytes:
            decision = decision._replace(target_bytes=row.told_bytes)
        self._decisions.append(VmDecision(vm, decision, repeated))
        self._deadlines.queue(vm, row)

    def tell_again_if_stopped(self, vm: VmId, row: Row) -> None:
        """Sends a target once more to a driver whose balloon is smaller, and has not changed for
        long.

        Windows' and OpenBSD's drivers stop at the first page that they cannot get, and try again
        only when they are told of a target. A guest that has taken pages back since its target was
        sent is left alone: it needs them (VIRTIO_BALLOON_F_DEFLATE_ON_OOM), and Linux's driver
        would give them again.
        """
        now_s, actual_bytes = self.now_s, row.actual_bytes
        if actual_bytes != row.moved_to_bytes:
            row.moved_at_s, row.moved_to_bytes = now_s, actual_bytes
            row.most_bytes = max(row.most_bytes, actual_bytes)
        short = row.most_bytes <= actual_bytes < row.policy.target_bytes
        if short and now_s - row.moved_at_s >= row.policy.settings.release_every_s:
            row.moved_at_s = now_s
            self.tell(vm, row, row.policy.target_bytes)

    def settle(
        self,
        vm: VmId,
        row: Row,
        balloon_bytes: int,
        reason: Reason,
        hold_s: float | None = None,
    ) -> None:
        """Makes a balloon's size the target, to the byte. The target of the level below may be
        gigabytes less: a level of a large VM is a sixteenth of its maximum.

        Args:
            vm: the VM.
            row: the VM's policy, size and target.
            balloon_bytes: the size; where it exceeds the policy's maximum, the maximum is taken.
            reason: why.
            hold_s: how long to wait with a step down, unless memory is low before; None: as long
                as after low memory.
        """
        balloon_bytes = min(balloon_bytes // PAGE_SIZE * PAGE_SIZE, row.policy.max_bytes)
        step = row.policy.adopt(balloon_bytes, self.now_s, hold_s)
        # Record the target before this step: the target may change although its level does not.
        decision = step.decision._replace(reason=reason, before_bytes=row.told_bytes)
        self.take(vm, row, step._replace(decision=decision), balloon_bytes)

    def move(
        self, vm: VmId, row: Row, target_bytes: int, release_at_s: float | None, why: Why
    ) -> None:
        """Makes any size the target of an adaptive VM, and collects the decision.

        Args:
            vm: the VM.
            row: the VM's policy, size and target.
            target_bytes: the target, in whole pages; the same as before: nothing is sent.
            release_at_s: until when nothing of it is given back; None: the balloon is to be empty.
            why: the reason, and what was seen.
        """
        policy, before_bytes = row.policy, row.told_bytes
        level_before, steps = policy.level, policy.settings.steps
        if target_bytes != before_bytes:
            self.tell(vm, row, target_bytes)
            policy.go_to(target_bytes, release_at_s)
            self._deadlines.queue(vm, row)
        row.last_reason = why.reason
        decision = Decision(
            why.reason,
            level_before,
            policy.level,
            steps,
            target_bytes,
            why.reading,
            why.needed_mib,
            why.aim_mib,
            before_bytes,
        )
        self._decisions.append(VmDecision(vm, decision, repeated=False))

    def leave(self, vm: VmId, row: Row, reason: Reason) -> None:
        """Sets the policy to level 0 without sending the target: the balloon stays as it is."""
        row.told_bytes = 0
        if row.guard is not None:
            row.guard.told(0, self.now_s)
        step = row.policy.adopt(0, self.now_s)
        decision = step.decision._replace(reason=reason)
        self.take(vm, row, Step((), decision))

    def find(self, vm: VmId, finding: Finding) -> None:
        """Notes a finding about a VM's guest or its balloon (``guard``)."""
        self._findings.append(VmFinding(vm, finding))

    def watch(self, vm: VmId, every_s: float | None) -> None:
        """Has a VM's figures read each ``every_s`` seconds; None: only on demand."""
        self._watches.append(Watch(vm, every_s))

    def note(self, over: Over) -> None:
        """Notes that something that an operator had asked for is over."""
        self._over.append(over)

    def note_stuck(self, vm: VmId) -> None:
        """Notes that a VM's deadline stays in the past."""
        self._stuck.append(vm)

    def queue(self, vm: VmId, row: Row) -> None:
        """Notes that a VM's deadline has moved."""
        self._deadlines.queue(vm, row)

    def step(self, wake_at_s: float, latest_s: float, *, listen: bool) -> HostStep:
        """The collected results; both times are infinite where nothing is due."""
        return HostStep(
            tuple(self._targets),
            tuple(self._decisions),
            None if wake_at_s == math.inf else wake_at_s,
            listen,
            tuple(self._findings),
            tuple(self._watches),
            tuple(self._over),
            tuple(self._stuck),
            0.0 if wake_at_s == math.inf else latest_s - wake_at_s,
        )
