"""Makes the status of the host and of a VM on demand, from what the controller knows anyway."""

from balloon_daemon.controller.reported import protection_status
from balloon_daemon.controller.vm import Vm
from balloon_daemon.host.watch import MemoryWatch
from balloon_daemon.sizing.decision import Decision, Reading
from balloon_daemon.sizing.host_policy import HostPolicy
from balloon_daemon.status import (
    HostStatus,
    LastDecision,
    PolicyStatus,
    ReclaimStatus,
    SourceStatus,
    VmStatus,
)
from balloon_daemon.units import VmId

FRESH_S = 1.0
"""If the last reading of the low-memory source is older, the source is read again for a status."""


def host_status(
    policy: HostPolicy,
    watch: MemoryWatch,
    last: tuple[VmId, Decision, float] | None,
    wake_at_s: float | None,
    now_s: float,
) -> HostStatus:
    """The host's status.

    Args:
        policy: the sizing policy.
        watch: reads the low-memory source.
        last: the last decision about any VM, and when it was made.
        wake_at_s: when the policy's earliest deadline comes.
        now_s: the time on the policy's clock.
    """
    return HostStatus(
        watch.status(FRESH_S),
        None if last is None else LastDecision(*last[:2], now_s - last[2]),
        _left_s(wake_at_s, now_s),
        watch.listens,
        paused_s=policy.steering.pauses.left_s(None, now_s),
        reclaims=tuple(
            ReclaimStatus(wanted.size_bytes, came_bytes, max(0.0, until_s - now_s))
            for wanted, came_bytes, until_s in policy.steering.reclaims.going_on()
        ),
        reserves=tuple(
            (size_bytes, max(0.0, until_s - now_s))
            for size_bytes, until_s in policy.steering.reserves.all_until_s()
        ),
        reserved_mib=policy.steering.reserves.mib,
    )


def vm_status(
    policy: HostPolicy, source: SourceStatus, vm_id: VmId, vm: Vm, now_s: float
) -> VmStatus:
    """One VM's status.

    Args:
        policy: the sizing policy, which governs the VM once the VM's size is known.
        source: the low-memory source, for its margin.
        vm_id: the VM.
        vm: the VM's guest and its last reports.
        now_s: the time on the policy's clock.
    """
    governed = policy.governs(vm_id)
    guard = policy.guard(vm_id) if governed else None
    return VmStatus(
        vm_id,
        vm.can,
        _policy_status(policy, source, vm_id, now_s) if governed else None,
        vm.balloon_bytes,
        vm.stats,
        vm.trouble,
        vm.settings,
        vm.state,
        None if vm.held is None else vm.held.held_bytes,
        None if guard is None else protection_status(guard, now_s),
        vm.kind,
        last_decision(vm_id, vm, now_s),
        vm.vmm_pid,
        policy.steering.pauses.left_s(vm_id, now_s),
    )


def last_decision(vm_id: VmId, vm: Vm, now_s: float) -> LastDecision | None:
    """A VM's last decision other than ``Reason.RECHECK``; None where there was none."""
    if vm.decided is None:
        return None
    decision, at_s = vm.decided
    return LastDecision(vm_id, decision, now_s - at_s)


def _policy_status(
    host: HostPolicy, source: SourceStatus, vm_id: VmId, now_s: float
) -> PolicyStatus:
    policy = host.policy(vm_id)
    state, steps = policy.state(), policy.settings.steps
    needed_mib = None
    if isinstance(source.seen, Reading):
        needed_mib = policy.needed_mib(source.seen) + host.steering.reserves.mib
    aim = host.aim(vm_id)
    if aim is not None:
        needed_mib = aim.kept_mib
    return PolicyStatus(
        host.vm_mem_bytes(vm_id),
        policy.max_bytes,
        policy.level,
        steps,
        host.target_bytes(vm_id),
        policy.statistics(),
        _left_s(state.recheck_at_s, now_s),
        _left_s(state.release_at_s, now_s),
        needed_mib,
        None if aim is None else aim.aim_mib,
    )


def _left_s(at_s: float | None, now_s: float) -> float | None:
    return None if at_s is None else max(0.0, at_s - now_s)
