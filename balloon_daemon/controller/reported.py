"""Translates guests' reports into events for the sizing policy, and the policy's findings into
events that are published."""

from typing import assert_never

from balloon_daemon.controller.vm import Vm
from balloon_daemon.events import (
    BalloonContested,
    BalloonFreed,
    BalloonMissing,
    GuestInNeed,
    ProtectionEvent,
    SqueezeStalled,
)
from balloon_daemon.guests.seam import (
    Ability,
    Actual,
    Attached,
    GuestState,
    Held,
    StateChanged,
    Stats,
)
from balloon_daemon.sizing.balloon_policy import PolicyState
from balloon_daemon.sizing.decision import Balance, Contested, Finding, InNeed, Missing, Stalled
from balloon_daemon.sizing.guard import Guard
from balloon_daemon.sizing.host_events import (
    Added,
    Measured,
    Moved,
    Ran,
    Reported,
    Restored,
    Sampled,
)
from balloon_daemon.sizing.need import Figures
from balloon_daemon.sizing.terms import Terms
from balloon_daemon.status import ProtectionStatus
from balloon_daemon.units import VmId


def attached(vm: Vm, report: Attached) -> Added | Restored:
    """A VM's report of its size as an event for the sizing policy."""
    vm_id, size, row = vm.guest.vm, report.vm_mem_bytes, report.row
    terms = Terms(vm.settings, Ability.STATS in vm.can, Ability.DEFLATE_ON_OOM in vm.can)
    if row is None:
        return Added(vm_id, size, report.balloon_bytes, terms)
    state = PolicyState(row.level, row.recheck_at_s, row.release_at_s)
    return Restored(vm_id, size, state, vm.balloon_bytes, terms)


def told_policy(vm: VmId, report: Actual | Stats | Held | StateChanged) -> Reported:
    """The report of a guest of the profile careful or adaptive as an event for the sizing
    policy."""
    match report:
        case Actual(balloon_bytes):
            return Moved(vm, balloon_bytes)
        case Held(held_bytes):
            return Measured(vm, held_bytes)
        case StateChanged(state):
            return Ran(vm, runs=state is GuestState.RUNNING)
        case Stats():
            figures = Figures(
                # A VMM may give a time before the host's boot, negative on CLOCK_MONOTONIC. A
                # trace allows no negative time.
                max(0.0, report.at_s),
                report.available_bytes,
                report.free_bytes,
                report.swap_in_bytes,
                report.major_faults,
                report.oom_kills,
                report.disk_read_bytes,
            )
            return Sampled(vm, figures)
        case _:
            assert_never(report)


def event_of(vm: VmId, finding: Finding) -> ProtectionEvent:
    """A finding about a VM, as an event."""
    match finding:
        case InNeed(signs, balloon_bytes, left_alone_s):
            in_order = tuple(sorted(signs, key=lambda sign: sign.value))
            return GuestInNeed(vm, in_order, balloon_bytes, left_alone_s)
        case Stalled():
            return SqueezeStalled(vm, *finding)
        case Contested():
            return BalloonContested(vm, *finding)
        case Balance(Missing.NOTHING):
            return BalloonFreed(vm)
        case Balance():
            return BalloonMissing(vm, *finding)
        case _:
            assert_never(finding)


def protection_status(guard: Guard, now_s: float) -> ProtectionStatus:
    """How a careful VM's guest is protected at this moment."""
    left_alone_s, at_s = guard.left_alone_s(now_s), guard.stats_at_s
    return ProtectionStatus(
        guard.objection(now_s),
        guard.signs if left_alone_s else frozenset(),
        left_alone_s,
        None if at_s is None else max(0.0, now_s - at_s),
        guard.proof.missing_bytes,
    )
