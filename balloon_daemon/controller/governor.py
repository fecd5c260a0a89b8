"""Runs one guest's balloon policy: timers and low memory in, targets and events out."""

import asyncio
import math
from collections.abc import Callable
from random import random
from typing import Protocol

from balloon_daemon.events import Decided, Publish, VmAttached, VmResized
from balloon_daemon.host.watch import MemoryWatch
from balloon_daemon.rate_limit import RateLimit
from balloon_daemon.sizing.balloon_policy import (
    Action,
    ArmTimer,
    AvailableMemoryTimer,
    BalloonPolicy,
    Decision,
    DisarmTimer,
    Event,
    LowMemory,
    LowMemoryTimer,
    PauseLowMemory,
    PolicySettings,
    PolicyState,
    Reading,
    Reason,
    ResumeLowMemory,
    SetTarget,
    Step,
    Timer,
    max_balloon_bytes,
)
from balloon_daemon.units import VmId

SIZES_A_SECOND = 2
"""Changes of size that are more than ``quiet``: a guest may name any total, at any time."""

_QUIET = {Reason.AT_MAXIMUM, Reason.NO_BALLOON, Reason.FRUITLESS, Reason.NO_ROOM}


class GovernedVm(Protocol):
    """What a governor asks of its VM."""

    def against_more(self, level: int) -> Reason | None:
        """Why the guest must not be asked for more just now; None: it may."""

    @property
    def actual_bytes(self) -> int:
        """The balloon's size, as the driver says."""

    def tell_again(self) -> None:
        """Tells the guest the present target once more."""


class Governor:
    """The policy of one guest, once its size is known.

    Args:
        settings: the policy's numbers.
        watch: tells when memory is low.
        set_target: takes each new target, in bytes.
        decided: called after each decision that is worth a line, and after each change of state.
        vm: what else a decision goes by.
        vm_id: which VM it is.
        publish: takes what happens.
    """

    def __init__(
        self,
        settings: PolicySettings,
        watch: MemoryWatch,
        set_target: Callable[[int], None],
        decided: Callable[[], None],
        vm: "GovernedVm",
        vm_id: VmId,
        publish: Publish,
    ) -> None:
        self._settings = settings
        self._watch = watch
        self._set_target = set_target
        self._decided = decided
        self._vm = vm
        self._id = vm_id
        self._publish = publish
        self._loop = asyncio.get_running_loop()
        self._policy: BalloonPolicy | None = None
        self._timers: dict[Timer, asyncio.TimerHandle] = {}
        self._last_reason: Reason | None = None
        self._moved_at, self._moved_to, self._most = -math.inf, 0, 0
        self._halted = False
        self._sizes = RateLimit(SIZES_A_SECOND)
        self.vm_mem_bytes = 0
        """The size that the policy goes by; 0 before it is known."""

    @property
    def started(self) -> bool:
        return self._policy is not None

    def state(self) -> PolicyState | None:
        """The policy's state, to be kept; None before it has one."""
        return None if self._policy is None else self._policy.state()

    def start(self, vm_mem_bytes: int, balloon_bytes: int = 0) -> None:
        """Begins; not after ``halt``, as nobody would give back what the guest then gives.

        Args:
            vm_mem_bytes: the VM's size.
            balloon_bytes: what an earlier balloond has left in the guest's balloon.
        """
        if self._halted:
            return
        self.vm_mem_bytes = vm_mem_bytes
        self._policy = BalloonPolicy(max_balloon_bytes(vm_mem_bytes), self._settings, random)
        steps = self._settings.steps
        self._publish(VmAttached(self._id, vm_mem_bytes, self._policy.max_bytes, steps))
        if balloon_bytes:
            self._take(self._policy.adopt(balloon_bytes, self._loop.time()))
            self._decided()
        else:
            self._set_target(0)
        self._watch.listen(self._memory_is_low)

    def resize(self, vm_mem_bytes: int) -> None:
        """The VM has another size from now on."""
        if self._policy is None or self._halted or vm_mem_bytes == self.vm_mem_bytes:
            return
        self.vm_mem_bytes = vm_mem_bytes
        max_bytes = max_balloon_bytes(vm_mem_bytes)
        quiet = self._sizes.admit(self._loop.time()) is None
        self._publish(VmResized(self._id, vm_mem_bytes, max_bytes, self._settings.steps, quiet))
        if max_bytes != self._policy.max_bytes:
            self._take(self._policy.resize(max_bytes), quiet=quiet)
            self._decided()

    def restore(self, vm_mem_bytes: int, state: PolicyState) -> None:
        """Goes on from another controller's state.

        Raises:
            StateError: no policy with these settings can be in that state.
        """
        self.vm_mem_bytes = vm_mem_bytes
        self._policy = BalloonPolicy.restore(
            state, max_balloon_bytes(vm_mem_bytes), self._settings, random
        )

    def resume(self) -> None:
        """After ``restore``: target, timers and listening as they were."""
        if self._policy is not None:
            self._take(self._policy.resume(self._loop.time()))

    def halt(self) -> None:
        """Decides nothing any more."""
        self._halted = True
        self._watch.ignore(self._memory_is_low)
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _memory_is_low(self, reading: Reading) -> None:
        assert self._policy is not None
        self._policy.held = self._vm.against_more(self._policy.level)
        self._step(LowMemory(reading))
        self._tell_if_stopped()

    def _tell_if_stopped(self) -> None:
        """Tells a target once more to a driver that is short of it and has not moved for long.

        It may have stopped at the first page that it could not have, and look again only when it
        is told (Windows', OpenBSD's). A guest that has taken pages back since it was told needs
        them (VIRTIO_BALLOON_F_DEFLATE_ON_OOM), and Linux's driver would give them again.
        """
        assert self._policy is not None
        now, actual = self._loop.time(), self._vm.actual_bytes
        if actual != self._moved_to:
            self._moved_at, self._moved_to = now, actual
            self._most = max(self._most, actual)
        short = self._most <= actual < self._policy.target_bytes
        if short and now - self._moved_at >= self._settings.release_every_s:
            self._moved_at = now
            self._vm.tell_again()

    def _fired(self, timer: Timer) -> None:
        del self._timers[timer]
        if timer is Timer.LOW_MEMORY:
            self._step(LowMemoryTimer())
        else:
            self._step(AvailableMemoryTimer(self._watch.read()))

    def _step(self, event: Event) -> None:
        assert self._policy is not None
        self._take(self._policy.step(event, self._loop.time()))
        self._decided()

    def _take(self, step: Step, *, quiet: bool = False) -> None:
        # What listens again may decide again, so this decision is published before that.
        for action in step.actions:
            if isinstance(action, SetTarget):
                self._set_target(action.target_bytes)
                self._moved_at, self._most = self._loop.time(), self._vm.actual_bytes
        self._publish_decision(step.decision, quiet=quiet)
        self._act(step.actions)

    def _publish_decision(self, decision: Decision, *, quiet: bool) -> None:
        # Under lasting pressure at the maximum the same decision falls every second: said once.
        repeated = decision.reason in _QUIET and decision.reason is self._last_reason
        quiet = quiet or repeated or decision.reason is Reason.RECHECK
        if decision.reason is not Reason.RECHECK:
            self._last_reason = decision.reason
        self._publish(Decided(self._id, decision, quiet))

    def _act(self, actions: tuple[Action, ...]) -> None:
        for action in actions:
            match action:
                case ArmTimer(timer, delay_s):
                    self._disarm(timer)
                    self._timers[timer] = self._loop.call_later(delay_s, self._fired, timer)
                case DisarmTimer(timer):
                    self._disarm(timer)
                case PauseLowMemory():
                    self._watch.ignore(self._memory_is_low)
                case ResumeLowMemory():
                    self._watch.listen(self._memory_is_low)

    def _disarm(self, timer: Timer) -> None:
        armed = self._timers.pop(timer, None)
        if armed is not None:
            armed.cancel()
