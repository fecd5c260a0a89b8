"""Runs one guest's device, according to the table of states in ``life.py``.

Runs in the controller. It has devices forked, waits for their end, kills those that do not stop,
and passes the results to the table.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import assert_never

from balloon_daemon.device.process import DeviceProcess
from balloon_daemon.device.spec import DeviceSpec
from balloon_daemon.errors import DeviceHangsError, StateFileError
from balloon_daemon.events import Publish
from balloon_daemon.guests.jailed.device_notices import DeviceNotices
from balloon_daemon.guests.jailed.device_spec import EARNED_AFTER_S, device_spec
from balloon_daemon.guests.jailed.forks import Ask, PendingFork, Wanted
from balloon_daemon.guests.jailed.life import WAIT_S, Action, Event, Life, State, Step
from balloon_daemon.guests.jailed.reports import Hears, Reports
from balloon_daemon.guests.jailed.running_device import Ended, Predecessor, RunningDevice
from balloon_daemon.guests.waiting import is_done_within
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.linux.jail import Identity
from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.tube.messages import Command, Target
from balloon_daemon.units import VmId
from balloon_daemon.vhost_user.backend import Backend
from balloon_daemon.vhost_user.effects import ReadyVring

LOOKS_AFTER_S = (0.0, 0.3, 0.3)
"""Seconds to wait before each fork of a device that only reports each ring's ``used.idx``."""


class Jail(NamedTuple):
    """The settings with which every device of a guest is forked.

    Attributes:
        identity: the user that a device becomes; None: it keeps its user.
        ask: asks for a device.
        charge: charges the seconds that reports take to the guest's user (``ReportReader``).
        hold_hanging: called with 1 where a device has not ended by the end of its guest's session,
            and with -1 when it has.
        in_turn: has a device's end handled in one of the user's turns.
    """

    identity: Identity | None
    ask: Ask
    charge: Callable[[float], float] = lambda _spent_s: 0.0
    hold_hanging: Callable[[int], None] = lambda _change: None
    in_turn: Callable[[Callable[[], None]], None] = lambda work: work()


class DeviceSupervisor:
    """The device of one guest, if there is one.

    Args:
        backend: has the memory, the vrings, the descriptors and the target.
        jail: the settings for each fork.
        publish: takes events.
        vm: the guest's VM; its name is shown in ``ps``.
        changed: called after another device was forked, so that its pipe can be stored.
        hears: takes the devices' reports about their guest.
    """

    def __init__(
        self,
        backend: Backend,
        jail: Jail,
        publish: Publish,
        vm: VmId,
        changed: Callable[[], None],
        hears: Hears,
    ) -> None:
        self._backend = backend
        self._jail = jail
        self._publish = publish
        self._vm = vm
        self._changed = changed
        self._life = Life()
        self._notices = DeviceNotices(vm, publish)
        self._reports = Reports(vm, publish, hears, backend, self._life)
        self._device: PendingFork | RunningDevice | Predecessor | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._answer: asyncio.Future[Action] | None = None
        self._began_at = -EARNED_AFTER_S

    @property
    def running(self) -> bool:
        """Whether a device of this controller runs."""
        return isinstance(self._device, RunningDevice)

    @property
    def to_run(self) -> bool:
        """Whether a device runs, or will be forked because the vrings are ready."""
        return self.running or (not self._life.gave_up and bool(self._backend.ready_vrings()))

    @property
    def stderr_pipe(self) -> OwnedFd | None:
        """Read end of the standard error of the device that may serve the guest now, which reaches
        its end of file when that device is gone; None: there is no device."""
        if isinstance(self._device, RunningDevice | Predecessor):
            return self._device.stderr_pipe
        return None

    def settle(self) -> None:
        """Forks a device, if one can run, once the front-end has sent nothing for a moment."""
        self._take(Event.SETTLE)

    def send_target(self) -> None:
        """Sends the present target to the running device; a device forked later gets it then."""
        if isinstance(self._device, RunningDevice):
            self._device.order(Target(self._backend.target_bytes))

    def request_stats(self) -> None:
        """Asks the guest for new statistics."""
        if isinstance(self._device, RunningDevice):
            self._device.order(Command.REQUEST_STATS)

    def wait_out(self, stderr_pipe: OwnedFd) -> None:
        """Forks no device until another controller's device is gone: two devices would both answer
        the guest's buffers.

        Args:
            stderr_pipe: read end of that device's standard error.
        """
        self._take(Event.WAIT_OUT)
        self._device = Predecessor(stderr_pipe, self._predecessor_gone)

    def take_over(self) -> None:
        """Takes over vrings that another controller's device may have served."""
        # A device of the earlier controller may have served some vrings. If it ended between that
        # controller's death and this one's start, neither has got its report of ``used.idx``.
        self._life.know_rings(known=not self._backend.ready_vrings(disabled=True))
        self.settle()

    async def stop(self) -> None:
        """Ends the device; on return no device touches the guest's memory or rings any more.

        Raises:
            StateFileError: the device of an earlier balloond does not end.
            DeviceHangsError: this controller's device was killed and does not end. A system call
                of it may still touch the guest's memory, so the VMM must not be told the rings'
                ``used.idx``, and no other device is forked.
        """
        await self._ask(Event.STOP)

    async def learn_indices(self) -> None:
        """Makes every vring's ``base`` its ``used.idx``, after ``stop``.

        A device that stopped in order has reported each ``used.idx``. If the device was killed,
        another device is forked only to read ``used.idx`` from the rings, because the controller
        maps no guest memory.

        Raises:
            DeviceHangsError: as for ``stop``.
        """
        for wait_s in LOOKS_AFTER_S:
            if self._life.rings_known:
                return
            await asyncio.sleep(wait_s)
            await self._ask(Event.LOOK)
        if not self._life.rings_known:
            self._notices.rings_unknown()

    def close(self) -> None:
        """Gives up a device that ``stop`` could not end."""
        self._take(Event.CLOSE)
        if isinstance(self._device, Predecessor):
            self._device.close()
            self._device = None
        elif isinstance(self._device, RunningDevice):
            self._jail.hold_hanging(1)

    # --- performing the steps of the table ----------------------------------------------------

    async def _ask(self, event: Event) -> None:
        """Steps with STOP or LOOK, and waits for the answer, together with other waiting tasks."""
        if self._answer is None or self._answer.done():
            self._answer = asyncio.get_running_loop().create_future()
        answer = self._answer
        self._take(event)
        if not answer.done():
            await is_done_within(answer, None)
        if answer.result() is Action.ANSWER_HANGS:
            raise DeviceHangsError("its device hangs, and no other may serve it")
        if answer.result() is Action.ANSWER_PREDECESSOR_STAYS:
            raise StateFileError("the device of an earlier balloond does not end")

    def _take(self, event: Event) -> None:
        before = self._life.state
        self._perform(before, self._life.take(event))

    def _perform(self, before: State, step: Step) -> None:
        if self._timer is not None and (step.state is not before or step.wait is not None):
            self._timer.cancel()
            self._timer = None
        if step.wait is not None:
            self._timer = asyncio.get_running_loop().call_later(WAIT_S[step.wait], self._due)
        for action in step.actions:
            self._act(action)

    def _due(self) -> None:
        # Drop the timer's handle: it refers to this method and so to this object, a reference
        # cycle that only the garbage collector would free.
        self._timer = None
        self._take(Event.DUE)

    def _act(self, action: Action) -> None:
        match action:
            case Action.FORK:
                self._fork(look=False)
            case Action.FORK_TO_LOOK:
                self._fork(look=True)
            case Action.DROP_FORK:
                assert isinstance(self._device, PendingFork)
                self._device.drop()
                self._device = None
            case Action.ANSWER_ENDED | Action.ANSWER_HANGS | Action.ANSWER_PREDECESSOR_STAYS:
                assert self._answer is not None
                self._answer.set_result(action)
            case Action.ORDER_STOP | Action.KILL | Action.PUBLISH_KILLING | Action.PUBLISH_HANGS:
                assert isinstance(self._device, RunningDevice)
                self._act_on(self._device, action)
            case _:
                assert_never(action)

    def _act_on(self, device: RunningDevice, action: Action) -> None:
        if action is Action.ORDER_STOP:
            device.stop()
        elif action is Action.KILL:
            device.kill()
        elif action is Action.PUBLISH_HANGS:
            self._notices.hangs(device.pid)
        elif not self._life.rings_known:
            # A device that has reported each ring's ``used.idx`` (``Stopped``) only has to end,
            # which may take long, as it may free the guest's memory: warn about others only.
            self._notices.does_not_stop(device.pid)

    def _fork(self, *, look: bool) -> None:
        served: list[ReadyVring] = []

        def spec() -> DeviceSpec | None:
            # With ``look``, also take disabled vrings: a front-end disables its vrings before it
            # asks for their ``used.idx`` (GET_VRING_BASE).
            served[:] = self._backend.ready_vrings(disabled=look)
            if not served:
                self._device = None
                self._take(Event.NOT_READY)
                return None
            since_s = asyncio.get_running_loop().time() - self._began_at
            identity = self._jail.identity
            return device_spec(self._backend, served, self._vm.name, since_s, identity)

        def forked(process: DeviceProcess) -> None:
            self._forked(process, served, look=look)

        self._device = self._jail.ask(Wanted(spec, forked, self._not_forked))

    def _forked(self, process: DeviceProcess, served: Sequence[ReadyVring], *, look: bool) -> None:
        if not look:
            self._began_at = asyncio.get_running_loop().time()
        self._reports.begin()
        self._device = RunningDevice(
            process,
            self._vm,
            self._publish,
            self._reports.take,
            self._misbehaved,
            self._ended,
            self._jail.charge,
            self._jail.in_turn,
            look=look,
        )
        self._take(Event.FORKED)
        self._notices.forked(process.pid, served, self._backend, look=look)
        if self._backend.config.num_pages != self._backend.config.actual:
            self.send_target()
        self._changed()

    def _not_forked(self, err: OSError) -> None:
        self._device = None
        self._notices.not_forked(err)
        self._take(Event.NO_FORK)

    def _misbehaved(self, found: str) -> None:
        if isinstance(self._device, RunningDevice):
            self._notices.misbehaved(self._device.pid, found)
            self._take(Event.MISBEHAVED)

    def _ended(self, ended: Ended) -> None:
        self._device = None
        before = self._life.state
        self._perform(before, self._life.gone(asyncio.get_running_loop().time()))
        if before is State.CLOSED:
            self._jail.hold_hanging(-1)
        if before is State.RUNNING:
            self._notices.died(ended, self._life.deaths if self._life.gave_up else 0)

    def _predecessor_gone(self) -> None:
        self._device = None
        self._take(Event.PREDECESSOR_GONE)
