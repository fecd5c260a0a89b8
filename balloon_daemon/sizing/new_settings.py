"""Applies other settings to a VM that is governed already: a configuration was read anew. Pure.

The balloon stays as it is, unless it is larger than it may be by the new settings. The deadlines
of the VM's policy stay, too: memory is given back no later than it would have been.
"""

from dataclasses import replace

from balloon_daemon.sizing.adaptive import Adaptive
from balloon_daemon.sizing.balloon_policy import LowMemoryTimer, SetTarget
from balloon_daemon.sizing.decision import Reason
from balloon_daemon.sizing.host_events import SettingsChanged
from balloon_daemon.sizing.outcome import Outcome
from balloon_daemon.sizing.priorities import Priorities
from balloon_daemon.sizing.protection import Protection
from balloon_daemon.sizing.row import Row
from balloon_daemon.units import VmId


class NewSettings:
    """Takes other settings for the VMs of a host.

    Args:
        priorities: tells which VMs are asked for memory first.
        protection: protects the guests of careful VMs.
        adaptive: sizes the balloons of adaptive VMs.
    """

    def __init__(self, priorities: Priorities, protection: Protection, adaptive: Adaptive) -> None:
        self._priorities = priorities
        self._protection = protection
        self._adaptive = adaptive

    def take(self, event: SettingsChanged, row: Row, outcome: Outcome) -> None:
        """Applies a VM's new settings."""
        was_careful = row.terms.is_careful
        self._priorities.remove(row)
        row.terms = replace(row.terms, settings=event.settings)
        self._priorities.add(row)
        if was_careful and not row.terms.is_careful:
            self._protection.end(event.vm, row, outcome)
        elif row.terms.is_careful and not was_careful:
            self._protection.add(event.vm, row, outcome)
            if row.guard is not None:
                row.guard.told(row.told_bytes, outcome.now_s)
        if row.terms.is_adaptive:
            if not row.policy.listening:
                row.policy.step(LowMemoryTimer(), outcome.now_s)
            self._adaptive.add(event.vm, row, outcome.now_s)
        else:
            self._adaptive.remove(event.vm)
        _keep_within(event.vm, row, row.terms.max_bytes(row.vm_mem_bytes), outcome)
        outcome.queue(event.vm, row)


def _keep_within(vm: VmId, row: Row, max_bytes: int, outcome: Outcome) -> None:
    """Changes the maximum of a VM's balloon, and its target only where that exceeds the
    maximum."""
    policy = row.policy
    if max_bytes == policy.max_bytes:
        return
    before, release_at_s = policy.level, policy.state().release_at_s
    kept_bytes = min(row.told_bytes, max_bytes)
    step = policy.resize(max_bytes)
    if release_at_s is not None:
        # Where the maximum falls, ``resize`` keeps the level, whose target falls with it: memory
        # would go back that the new maximum allows. ``adopt`` keeps the target instead.
        step = policy.adopt(kept_bytes, outcome.now_s, max(0.0, release_at_s - outcome.now_s))
    decision = step.decision._replace(reason=Reason.LIMITS_CHANGED, level_before=before)
    told = kept_bytes != row.told_bytes
    actions = tuple(each for each in step.actions if told or not isinstance(each, SetTarget))
    outcome.take(vm, row, step._replace(actions=actions, decision=decision), kept_bytes)
