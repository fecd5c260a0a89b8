"""Checks an operator's command about a VM's balloon, before the sizing policy gets it as an
event."""

from collections.abc import Callable

from balloon_daemon.commands import NotDone, Refusal, Release, SetBalloon
from balloon_daemon.controller.vm import Vm
from balloon_daemon.guests.seam import GuestState
from balloon_daemon.sizing.decision import Reason
from balloon_daemon.sizing.host_events import Asked
from balloon_daemon.sizing.host_policy import HostPolicy
from balloon_daemon.units import PAGE_SIZE, VmId


def checked(
    command: Release | SetBalloon,
    policy: HostPolicy,
    vm: Vm,
    against_more: Callable[[VmId, int], Reason | None],
    now_s: float,
) -> Asked | NotDone:
    """The event for the sizing policy, or why the operator's command is refused.

    A balloon may always be made smaller. A command to make it larger is refused where the policy
    itself would not make it larger, for example if the guest's statistics show that it is in need.
    """
    if not policy.governs(command.vm):
        return NotDone(Refusal.NO_SIZE)
    if policy.halted:
        return NotDone(Refusal.ENDING)
    if isinstance(command, Release):
        return Asked(command.vm, 0)
    most_bytes = policy.policy(command.vm).max_bytes
    balloon_bytes = command.balloon_bytes // PAGE_SIZE * PAGE_SIZE
    if balloon_bytes > most_bytes:
        return NotDone(Refusal.TOO_LARGE, most_bytes)
    if balloon_bytes > max(vm.balloon_bytes, policy.target_bytes(command.vm)):
        guard = policy.guard(command.vm)
        objection = None if guard is None else guard.objection(now_s)
        if objection is None and vm.state is not GuestState.RUNNING:
            objection = Reason.NOT_RUNNING
        if objection is None:
            objection = against_more(command.vm, policy.policy(command.vm).level)
        if objection is not None:
            return NotDone(Refusal.OBJECTION, objection=objection)
    return Asked(command.vm, balloon_bytes, command.for_s)
