"""One VM whose balloon belongs to its own VMM: all that VMMs have in common.

Runs in the controller. One task makes one call at a time to the VMM's ``Control``, in this order:
the latest target, how often the guest is to send statistics, a sample. Between two calls it sleeps
until the next sample is due. ``set_target`` only notes the target and wakes the task: of several
targets the VMM gets the last, and 256 VMs get theirs in the loop's next turn.

A VMM that refuses a call keeps its VM, which is reported as stuck, and is asked again after the
next sample. Any other fault ends the task: the VM is reported as gone, and its finder
(``finder.py``) connects anew. The VM keeps the balloon that it has.
"""

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable
from typing import TypeVar

from balloon_daemon.events import GivenBackLater, GivingBack
from balloon_daemon.events.driven import Fault
from balloon_daemon.guests.driven.bases import Place
from balloon_daemon.guests.driven.claims import SocketId
from balloon_daemon.guests.driven.control import (
    CALL_WITHIN_S,
    Control,
    ControlError,
    Found,
    Notice,
)
from balloon_daemon.guests.driven.host_side import HostSide
from balloon_daemon.guests.driven.reporting import NOT_TO_BE_DRIVEN, Reporter, Shared
from balloon_daemon.guests.driven.waking import YOUNG_S, Bell, Notices, Schedule
from balloon_daemon.guests.in_turn import IN_TURN
from balloon_daemon.guests.seam import Gone, GuestState, VmRow
from balloon_daemon.sizing.decision import Reason
from balloon_daemon.units import VmId

T = TypeVar("T")

HANGS_AFTER_S = 4 * CALL_WITHIN_S
"""After this time a call counts as hanging for good: the connection is closed, and a new one is
made. A ``Control`` bounds each of its waits by ``CALL_WITHIN_S``, so only a bug lets a call take
so long. Each VM is checked for such a call once in this time."""

FAILS_WITHIN_S = 1.0
"""How long a call may take to fail once the connection is closed, or its task to end."""


class DrivenVm:
    """One VM whose balloon is driven through its VMM. The controller calls the methods of
    ``Guest`` (``guests/seam.py``).

    Args:
        vm: the VM.
        control: the open connection to its VMM; closed when the VM's task ends.
        found: what ``control`` has found.
        host: its VMM's process.
        notices: collects what ``control`` notices.
        shared: what all driven VMs share.
        socket: its VMM's socket; None: unknown.

    Attributes:
        ended: done when the VM's task has ended; its result is the reason.
    """

    def __init__(
        self,
        vm: VmId,
        control: Control,
        found: Found,
        host: HostSide,
        notices: Notices,
        shared: Shared,
        socket: SocketId | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.vm = vm
        self.ended: asyncio.Future[ControlError] = loop.create_future()
        self._control = control
        self._found = found
        self._notices = notices
        self._shared = shared
        self._reporter = Reporter(vm, found, host, shared, socket)
        self._bell = notices.bell = Bell()
        self._schedule = Schedule(vm.number, loop.time())
        self._called_at_s = math.inf
        self._refused = False
        self._given_back: asyncio.Future[None] | None = None

    def reached(self, place: Place) -> None:
        """Notes where balloond is connected to the VM. If the next balloond's configuration does
        not have the VM any more, it connects there to give the VM its memory back."""
        self._shared.bases.reached(self._reporter.key, place)

    @property
    def is_told(self) -> bool:
        """Whether its VMM has taken the latest target."""
        return self._reporter.balloon.is_told

    @property
    def owed_bytes(self) -> int | None:
        """How many bytes beyond its base the VM has not got back: what balloond has taken, or has
        told the VMM to take. None: the VM has got back all."""
        if self._shared.bases.get(self._reporter.key) is None:
            return None
        balloon = self._reporter.balloon
        return max(balloon.taken_bytes, balloon.asked_bytes)

    # --- the controller's calls ---------------------------------------------------------------

    async def serve(self) -> None:
        """Drives the balloon until the VM is gone."""
        why = ControlError(Fault.GONE)
        self._shared.vms_of[self._notices.user] += 1
        try:
            await self._serve()
        except ControlError as err:
            why = err.anew()
        finally:
            vms_of = self._shared.vms_of
            vms_of -= Counter({self._notices.user: 1})  # Unlike -= 1, deletes a count of 0.
            self._control.close()
            self._wait_no_more()
            self._reporter.ended()
            self._shared.report(self.vm, Gone(why.fault.value))
            self.ended.set_result(why)

    def set_target(self, target_bytes: int) -> None:
        """Sets the balloon's wanted size, beyond its base; the same value again is sent only to a
        driver that has stopped short of it (``target.py``)."""
        balloon = self._reporter.balloon
        was_changed = balloon.changed
        balloon.want(target_bytes)
        if balloon.changed and not was_changed:
            # Only note the base here; ``_set_balloon`` writes the file, just before it sends the
            # target. If many VMs get targets together, all their bases are noted before the first
            # of them sends its own, so the file is written once instead of once for each VM.
            self._shared.bases.note(self._reporter.key, balloon.base_bytes)
        self._bell.ring()

    def request_stats(self) -> None:
        if self._schedule.wanted_s is None:  # A watched VM is sampled soon anyway.
            self._schedule.hurry(asyncio.get_running_loop().time())
            self._bell.ring()

    def watch(self, every_s: float | None) -> None:
        self._schedule.watch(every_s, asyncio.get_running_loop().time())
        self._bell.ring()

    def against_more(self, level: int) -> Reason | None:
        return Reason.FRUITLESS if self._reporter.balloon.most_bytes is not None else None

    def keep(self, row: VmRow) -> bool:
        """Does nothing: the next balloond finds the balloon as it is."""
        return True

    async def give_back(self) -> None:
        """Sets the balloon to its size from before balloond, and waits until the guest has the
        memory, or will take it later on its own (``_has_given_back``)."""
        balloon = self._reporter.balloon
        if balloon.changed:
            self._shared.publish(GivingBack(self.vm, balloon.taken_bytes))
        self._schedule.give_back(asyncio.get_running_loop().time())
        self.set_target(0)
        if not self.ended.done() and not self._has_given_back():
            self._given_back = asyncio.get_running_loop().create_future()
            await self._given_back
        if self._reporter.state is GuestState.PAUSED and balloon.taken_bytes:
            self._shared.publish(GivenBackLater(self.vm, balloon.taken_bytes))

    stays = True
    """Another balloond can always take the VM over: the VMM keeps the balloon when this balloond
    leaves the VM, and the next balloond reads its size from the VMM."""

    def leave(self) -> None:
        """Does nothing: the VM keeps the balloon that it has."""

    # --- the VM's task ------------------------------------------------------------------------

    async def _serve(self) -> None:
        """Waits until the VM is gone, a call has failed, or a call has hung for too long.

        One task makes all of the calls: a new task for each call would cost more.
        """
        loop = asyncio.get_running_loop()
        gone, driving = loop.create_task(self._control.gone()), loop.create_task(self._drive())
        tasks = (gone, driving)
        try:
            await asyncio.wait(tasks, timeout=HANGS_AFTER_S, return_when=asyncio.FIRST_COMPLETED)
            while not gone.done() and not driving.done():
                if self._called_at_s <= loop.time() - HANGS_AFTER_S:
                    raise ControlError(Fault.HANGS)
                await asyncio.wait(
                    tasks, timeout=HANGS_AFTER_S, return_when=asyncio.FIRST_COMPLETED
                )
            if not driving.done() and self._called_at_s < math.inf:
                # The connection has ended during a call. Wait for this call to fail, too: its
                # error says more than ``GONE``.
                await asyncio.wait([driving], timeout=FAILS_WITHIN_S)
            if driving.done():
                driving.result()
            why = gone.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=FAILS_WITHIN_S)
            # A task keeps its error, which leads to these variables (``ControlError.anew``).
            del gone, driving, tasks, task
        raise why.anew() if why is not None else ControlError(Fault.GONE)

    async def _drive(self) -> None:
        """Makes all calls. Raises ControlError: a call has failed."""
        loop = asyncio.get_running_loop()
        try:
            self._reporter.found(self._found, loop.time())
            while True:
                if not await self._work(loop.time()):
                    self._shared.bases.store_soon()
                    await self._bell.wait_until(self._schedule.due_s)
        except ControlError as err:
            if err.fault in NOT_TO_BE_DRIVEN:
                await self._call(self._reporter.let_go(self._control))
            raise

    async def _call(self, call: Awaitable[T]) -> T:
        self._called_at_s = asyncio.get_running_loop().time()
        try:
            return await call
        finally:
            self._called_at_s = math.inf

    async def _work(self, now_s: float) -> bool:
        """Makes the next call that is due; False where none is."""
        self._take_notices(now_s)
        balloon, schedule = self._reporter.balloon, self._schedule
        try:
            if not self._refused and (balloon_bytes := balloon.due()) is not None:
                await self._set_balloon(balloon_bytes)
            elif not self._refused and (wanted_s := schedule.wanted_s) != schedule.told_s:
                if self._reporter.sends_stats:
                    await self._call(self._control.watch(wanted_s))
                schedule.told_s = wanted_s
            elif schedule.due_s <= now_s:
                await self._sample(now_s)
            else:
                return False
        except ControlError as err:
            if err.fault is not Fault.REFUSED:
                raise
            self._refused = True
            self._reporter.refused(err.detail)
        if self._given_back is not None and self._has_given_back():
            self._wait_no_more()
        return True

    def _take_notices(self, now_s: float) -> None:
        pending = self._notices.pending
        while pending:
            match pending.pop():
                case Notice.RESET:
                    self._reporter.reset(now_s)
                    self._schedule.young_until_s = now_s + YOUNG_S
                case Notice.REFILLED:
                    self._reporter.refilled()
            self._schedule.hurry(now_s, self._shared.vms_of[self._notices.user])

    async def _set_balloon(self, balloon_bytes: int) -> None:
        self._shared.bases.store()
        asked_bytes = self._reporter.balloon.asked_bytes  # May change during the call.
        await self._call(self._control.set_balloon(balloon_bytes))
        self._reporter.balloon.sent(asked_bytes)

    async def _sample(self, now_s: float) -> None:
        reporter = self._reporter
        self._schedule.sampled(
            now_s,
            has_driver=reporter.state is not GuestState.NO_DRIVER,
            retaking=reporter.balloon.most_bytes is not None,
        )
        await self._call(reporter.look(now_s))
        sample = await self._call(self._control.sample())
        self._refused = False
        now = asyncio.get_running_loop().time
        await IN_TURN.result(self._notices.user, lambda: reporter.take(sample, now()))

    def _has_given_back(self) -> bool:
        """Whether the guest has all that balloond took, or will take it later on its own: a paused
        guest when it goes on, a guest without driver when its next driver listens."""
        balloon, schedule = self._reporter.balloon, self._schedule
        moves = self._reporter.state is GuestState.RUNNING
        done = not balloon.changed or (balloon.is_told and not moves)
        return done and schedule.told_s == schedule.wanted_s

    def _wait_no_more(self) -> None:
        """Ends a ``give_back``, unless whoever waits for it has given up."""
        waits, self._given_back = self._given_back, None
        if waits is not None and not waits.done():
            waits.set_result(None)
