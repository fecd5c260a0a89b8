"""Operators' commands to the sizing policy: checked, carried out, and published.

Runs in the controller.
"""

from collections.abc import Callable, Mapping
from itertools import count
from typing import assert_never

from balloon_daemon.commands import (
    MOST_RESERVES,
    MOST_WAITING,
    Done,
    NotDone,
    Pause,
    Reclaim,
    Reclaimed,
    Refusal,
    Release,
    Reserve,
    ReserveAnswer,
    Resume,
    SetBalloon,
    TakeAnswer,
    Unreserve,
)
from balloon_daemon.controller.asking import checked
from balloon_daemon.controller.vm import Vm
from balloon_daemon.events import (
    Publish,
    ReclaimBegan,
    ReclaimEnded,
    ReserveBegan,
    ReserveEnded,
    ReserveMet,
    ReserveNotMet,
    SizeAsked,
    TakingPaused,
    TakingResumed,
)
from balloon_daemon.host.margin import most_available_bytes
from balloon_daemon.sizing.decision import Ended, Reason
from balloon_daemon.sizing.host_events import (
    Event,
    HostStep,
    Paused,
    PauseOver,
    ReclaimOver,
    ReserveAnswered,
    Reserved,
    ReserveOver,
    Resumed,
    Unreserved,
    Wanted,
    Withdrawn,
)
from balloon_daemon.sizing.host_policy import HostPolicy
from balloon_daemon.units import MIB, VmId


class Operators:
    """Carries out the commands of a host's operators.

    Args:
        policy: the sizing policy, asked only about its state.
        vms: the VMs.
        against_more: why a VM must not be asked for more just now.
        step: gives the policy an event, and performs what the policy decides.
        publish: called with each event to be published.
        clock: the clock whose times the policy is given.
    """

    def __init__(
        self,
        policy: HostPolicy,
        vms: Mapping[VmId, Vm],
        against_more: Callable[[VmId, int], Reason | None],
        step: Callable[[Event], None],
        publish: Publish,
        clock: Callable[[], float],
    ) -> None:
        self._policy = policy
        self._vms = vms
        self._against_more = against_more
        self._step = step
        self._publish = publish
        self._clock = clock
        self._tickets = count(1)
        self._users: dict[int, int] = {}
        self._reserves = set[int]()
        self._waiting: dict[int, TakeAnswer] = {}
        # Read the host's figures once before VMs are served: their files stay open, and the lookup
        # of a name in /proc could wait for whoever lists it.
        most_available_bytes()

    def obey(self, command: Release | SetBalloon, uid: int) -> Done | NotDone:
        """Carries out an operator's command about a VM's balloon, or refuses it."""
        vm = self._vms.get(command.vm)
        if vm is None:
            return NotDone(Refusal.NO_SIZE)
        asked = checked(command, self._policy, vm, self._against_more, self._clock())
        if isinstance(asked, NotDone):
            return asked
        before_bytes = vm.balloon_bytes
        self._step(asked)
        self._publish(SizeAsked(vm.guest.vm, uid, asked.balloon_bytes, asked.hold_s or 0.0))
        return Done(before_bytes, asked.balloon_bytes)

    def steer(self, command: Pause | Resume | Unreserve, uid: int) -> NotDone | None:
        """Pauses or resumes the taking of memory, or ends all reserves; None: it is done."""
        if self._policy.halted:
            return NotDone(Refusal.ENDING)
        if isinstance(command, Unreserve):
            self._step(Unreserved())
            return None
        if not all(map(self._policy.governs, command.vms)):
            return NotDone(Refusal.NO_SIZE)
        if isinstance(command, Pause):
            self._step(Paused(command.vms, command.for_s))
            for vm in command.vms or (None,):
                self._publish(TakingPaused(vm, uid, command.for_s))
            return None
        pauses = self._policy.steering.pauses
        if command.vms and pauses.left_s(None, self._clock()) is not None:
            return NotDone(Refusal.ALL_PAUSED)
        ended = [vm for vm in pauses.vms if not command.vms or vm in command.vms]
        self._step(Resumed(command.vms))
        for vm in ended:
            self._publish(TakingResumed(vm, uid))
        return None

    def want(self, command: Reclaim | Reserve, uid: int, answer: TakeAnswer) -> int | NotDone:
        """Begins a command that takes a while; returns the number by which ``withdraw`` ends it,
        or why it is refused."""
        if (refused := self._against(command, uid)) is not None:
            return refused
        ticket = next(self._tickets)
        self._users[ticket], self._waiting[ticket] = uid, answer
        if isinstance(command, Reclaim):
            names = ", ".join(vm.name for vm in command.vms)
            self._publish(ReclaimBegan(uid, command.size_bytes, names, command.within_s))
            self._step(Wanted(ticket, *command))
        else:
            self._reserves.add(ticket)
            self._publish(ReserveBegan(uid, command.size_bytes, command.for_s))
            self._step(Reserved(ticket, *command))
        return ticket

    def withdraw(self, ticket: int) -> None:
        """Ends a command that ``want`` has begun, because its client has gone; does nothing if the
        command has ended already."""
        if ticket in self._waiting:
            self._step(Withdrawn(ticket))

    def _against(self, command: Reclaim | Reserve, uid: int) -> NotDone | None:
        if self._policy.halted:
            return NotDone(Refusal.ENDING)
        if len(self._waiting) >= MOST_WAITING:
            return NotDone(Refusal.TOO_MANY)
        if isinstance(command, Reclaim):
            sized = all(map(self._policy.governs, command.vms))
            return None if sized else NotDone(Refusal.NO_SIZE)
        if sum(self._users[ticket] == uid for ticket in self._reserves) >= MOST_RESERVES:
            return NotDone(Refusal.TOO_MANY_RESERVES)
        # With so much, memory would be low whatever the guests give: all VMs would be taken to
        # their maximum, as with such a margin, which is refused at the start.
        needed_bytes = self._policy.steering.reserves.needed_mib * MIB + command.size_bytes
        most_bytes = most_available_bytes()
        if most_bytes is not None and needed_bytes >= most_bytes:
            return NotDone(Refusal.BEYOND_HOST, most_bytes)
        return None

    def performed(self, step: HostStep) -> None:
        """Publishes the pauses, reclaims and reserves that have ended in a step, and the waits for
        reserves; answers the clients that wait for a reclaim or a reserve."""
        for over in step.over:
            match over:
                case PauseOver(vm):
                    self._publish(TakingResumed(vm, None))
                case ReclaimOver():
                    self._reclaimed(over)
                case ReserveAnswered():
                    self._reserved(over)
                case ReserveOver(reserved, why):
                    self._waiting.pop(reserved.ticket, None)
                    self._reserves.remove(reserved.ticket)
                    uid = self._users.pop(reserved.ticket)
                    self._publish(ReserveEnded(uid, reserved.size_bytes, why))
                case _:
                    assert_never(over)

    def _reclaimed(self, over: ReclaimOver) -> None:
        wanted, why, took_s, shares = over
        uid, answer = self._users.pop(wanted.ticket), self._waiting.pop(wanted.ticket)
        came_bytes = sum(share.came_bytes for share in shares)
        self._publish(ReclaimEnded(uid, wanted.size_bytes, came_bytes, took_s, why))
        if why is not Ended.WITHDRAWN:
            answer(Reclaimed(why, wanted.size_bytes, took_s, shares))

    def _reserved(self, over: ReserveAnswered) -> None:
        reserved, why, took_s, reading, shares = over
        uid, size_bytes = self._users[reserved.ticket], reserved.size_bytes
        if why is Ended.COMPLETE:
            self._publish(ReserveMet(uid, size_bytes, took_s))
        else:
            available_mib = None if reading is None else reading.available_mib
            needed_mib = None if reading is None else reading.margin_mib
            self._publish(ReserveNotMet(uid, size_bytes, available_mib, needed_mib, why))
        left_s = max(0.0, reserved.for_s - took_s)
        answer = self._waiting.pop(reserved.ticket)
        answer(ReserveAnswer(why, size_bytes, took_s, left_s, reading, shares))
