"""Governs every balloon of the host: gives HostPolicy a clock, one timer and readings of memory.

Runs in the controller. Guests' reports and readings of the low-memory source go into
``HostPolicy``. Of the results of a step, the targets are sent first, so that no VM waits for its
target while another VM's events are published or its state is stored.
"""

import asyncio
from collections.abc import Callable, Iterable
from random import random
from typing import assert_never

from balloon_daemon.commands import (
    Done,
    NotDone,
    Pause,
    Reclaim,
    Release,
    Reserve,
    Resume,
    SetBalloon,
    TakeAnswer,
    Unreserve,
)
from balloon_daemon.controller.operators import Operators
from balloon_daemon.controller.reported import attached, event_of, told_policy
from balloon_daemon.controller.statuses import host_status, vm_status
from balloon_daemon.controller.vm import Vm
from balloon_daemon.controller.vms import Vms
from balloon_daemon.errors import StateError
from balloon_daemon.events import Decided, Publish, VmAttached, VmResized
from balloon_daemon.guests.seam import (
    Actual,
    Attached,
    CanDo,
    Gone,
    Guest,
    GuestState,
    Held,
    Refused,
    Report,
    Resized,
    StateChanged,
    Stats,
    Stuck,
    VmRow,
)
from balloon_daemon.host.watch import MemoryWatch
from balloon_daemon.sizing import host_events
from balloon_daemon.sizing.balloon_policy import Decision, PolicySettings, Reason
from balloon_daemon.sizing.host_events import Halted, HostStep, Looked, Seen, Woke
from balloon_daemon.sizing.host_policy import HostPolicy
from balloon_daemon.sizing.vm_settings import SEED, Profile, VmSettings
from balloon_daemon.status import HostStatus, VmStatus
from balloon_daemon.units import VmId

MakePolicy = Callable[
    [PolicySettings, Callable[[], float], Callable[[VmId, int], Reason | None]], HostPolicy
]
"""Makes a ``HostPolicy``; has the same arguments as its constructor."""

READ_AGAIN_S = 1.0
"""How long until the next try where reading the low-memory source raised an error, perhaps for
lack of memory."""


class Governor:
    """The governor of all VMs.

    Args:
        settings: the balloon policy's numbers.
        watch: reads the low-memory source.
        publish: called with each event to be published.
        loop: the controller's event loop.
        make: makes the ``HostPolicy``.
    """

    def __init__(
        self,
        settings: PolicySettings,
        watch: MemoryWatch,
        publish: Publish,
        loop: asyncio.AbstractEventLoop,
        make: MakePolicy = HostPolicy,
    ) -> None:
        self._settings = settings
        self._watch = watch
        self._publish = publish
        self._loop = loop
        self._policy = make(settings, random, self._against_more)
        self._vms = Vms()
        self._operators = Operators(
            self._policy, self._vms, self._against_more, self._step, publish, loop.time
        )
        self._timer: asyncio.TimerHandle | None = None
        self._last: tuple[VmId, Decision, float] | None = None
        """The last decision about any VM and when it was made; ``Reason.RECHECK`` left out."""

    @property
    def vms(self) -> Iterable[Vm]:
        """The VMs that were added and have not gone."""
        return self._vms.values()

    def add(self, guest: Guest, settings: VmSettings = SEED, kind: str = "") -> None:
        """Adds a guest, which is asked for nothing before it has reported ``Attached``."""
        self._vms[guest.vm] = Vm(guest, settings, kind)

    def change(self, vm_id: VmId, settings: VmSettings | None) -> None:
        """Governs a VM by other settings from now on; None: decides nothing more for it, until it
        is gone."""
        if (vm := self._vms.get(vm_id)) is None:
            return  # The VM is removed; its task goes on for a moment, or until its device ends.
        vm.settings = settings or vm.settings
        if self._policy.governs(vm_id):
            if settings is None:
                self._step(host_events.Removed(vm_id))
                return
            self._step(host_events.SettingsChanged(vm_id, settings))
            if vm.state is not GuestState.RUNNING:
                self._tell_policy(vm_id, vm, StateChanged(vm.state))

    def halt(self) -> None:
        """Stops all decisions, because balloond ends."""
        self._step(Halted())

    def report(self, vm_id: VmId, report: Report) -> None:
        """Handles a guest's report.

        Raises:
            StateError: ``Attached.row`` holds a state that no policy can be in.
        """
        if (vm := self._vms.get(vm_id)) is None:
            return  # The VM has been removed, and its task may go on for a moment.
        match report:
            case Actual() | Stats() | Held() | StateChanged():  # First: most reports are these.
                if vm.note(report) and vm.may_tell(report, self._loop, self.report):
                    self._tell_policy(vm_id, vm, report)
            case Attached():
                self._attach(vm_id, vm, report)
            case CanDo(can):
                vm.can = can
            case Resized(vm_mem_bytes):
                self._resize(vm_id, vm, vm_mem_bytes)
            case Refused() | Stuck():
                vm.trouble = report
            case Gone():
                del self._vms[vm_id]
                if self._policy.governs(vm_id):
                    self._step(host_events.Removed(vm_id))
            case _:
                assert_never(report)

    def host_status(self) -> HostStatus:
        """The host's last memory reading, and the sizing policy's present state."""
        wake_at_s = None if self._timer is None else self._timer.when()
        return host_status(self._policy, self._watch, self._last, wake_at_s, self._loop.time())

    def vm_ids(self) -> tuple[VmId, ...]:
        """The VMs, by their names."""
        return self._vms.by_name()

    def vm_status(self, vm_id: VmId) -> VmStatus | None:
        """The present state of a VM; None: there is no such VM any more."""
        if (vm := self._vms.get(vm_id)) is None:
            return None
        return vm_status(self._policy, self._watch.status(), vm_id, vm, self._loop.time())

    def obey(self, command: Release | SetBalloon, uid: int) -> Done | NotDone:
        """Carries out an operator's command about a VM's balloon, or refuses it."""
        return self._operators.obey(command, uid)

    def steer(self, command: Pause | Resume | Unreserve, uid: int) -> NotDone | None:
        """Pauses or resumes the taking of memory, or ends all reserves; None: it is done."""
        return self._operators.steer(command, uid)

    def want(self, command: Reclaim | Reserve, uid: int, answer: TakeAnswer) -> int | NotDone:
        """Begins a long command; returns the number to withdraw it by, or why it is refused."""
        return self._operators.want(command, uid, answer)

    def withdraw(self, ticket: int) -> None:
        """Ends a command that ``want`` has begun, because its client has gone."""
        self._operators.withdraw(ticket)

    # --- guests' reports ----------------------------------------------------------------------

    def _attach(self, vm_id: VmId, vm: Vm, report: Attached) -> None:
        vm.can, vm.vmm_pid = report.can, report.vmm_pid
        step = self._policy.step(attached(vm, report), self._loop.time())
        if not self._policy.governs(vm_id):
            return  # HostPolicy is halted, because balloond ends: no target for this VM.
        if report.row is None:
            max_bytes = self._policy.policy(vm_id).max_bytes
            self._publish(VmAttached(vm_id, report.vm_mem_bytes, max_bytes, self._settings.steps))
        if vm.settings.profile is Profile.SEED:
            self._policy.note_actual(vm_id, vm.balloon_bytes)
        self._perform(step)
        if not step.decisions:
            self._keep(vm_id, vm, new=True)
        if vm.state is not GuestState.RUNNING:
            self._tell_policy(vm_id, vm, StateChanged(vm.state))

    def _tell_policy(
        self, vm_id: VmId, vm: Vm, report: Actual | Stats | Held | StateChanged
    ) -> None:
        """Gives a guest's report to the sizing policy. Of a VM of the profile seed the policy gets
        only the balloon's size, and decides nothing before its next step."""
        if not self._policy.governs(vm_id):
            return
        if vm.settings.profile is not Profile.SEED:
            self._step(told_policy(vm_id, report))
        elif isinstance(report, Actual):
            self._policy.note_actual(vm_id, report.balloon_bytes)

    def _resize(self, vm_id: VmId, vm: Vm, vm_mem_bytes: int) -> None:
        if not self._policy.governs(vm_id) or vm_mem_bytes == self._policy.vm_mem_bytes(vm_id):
            return
        now_s = self._loop.time()
        step = self._policy.step(host_events.Resized(vm_id, vm_mem_bytes), now_s)
        if self._policy.vm_mem_bytes(vm_id) != vm_mem_bytes:
            return  # HostPolicy is halted, because balloond ends.
        quiet = vm.sizes.admit(now_s) is None
        max_bytes = self._policy.policy(vm_id).max_bytes
        self._publish(VmResized(vm_id, vm_mem_bytes, max_bytes, self._settings.steps, quiet=quiet))
        self._perform(step, quiet=quiet)

    # --- memory and time ----------------------------------------------------------------------

    def _looked(self, seen: Seen) -> None:
        if self._policy.ignores(seen):
            self._watch.listen(self._looked, calm=True)
        else:
            self._step(Looked(seen))

    def _woke(self, due_s: float) -> None:
        self._timer = None
        try:
            # asyncio may call a timer slightly early, when by the clock no deadline is due yet.
            self._step(Woke(self._watch.read()), max(self._loop.time(), due_s))
        except BaseException:
            if self._timer is None:  # The read has failed: keep the deadlines.
                self._arm(self._loop.time() + READ_AGAIN_S)
            raise

    def _against_more(self, vm_id: VmId, level: int) -> Reason | None:
        try:
            return self._vms[vm_id].guest.against_more(level)
        except Exception as err:
            # A driver's bug: let the guest be asked. If raised, it would end HostPolicy's step.
            self._failed(err)
            return None

    # --- the policy's results -----------------------------------------------------------------

    def _step(self, event: host_events.Event, now_s: float | None = None) -> None:
        self._perform(self._policy.step(event, self._loop.time() if now_s is None else now_s))

    def _perform(self, step: HostStep, *, quiet: bool = False) -> None:
        # Set timer and watch first: calls below may cause another step, which sets them anew.
        self._arm(None if step.wake_at_s is None else step.wake_at_s + step.late_s)
        if step.listen:
            self._watch.listen(self._looked)
        else:
            self._watch.rest()
        for target in step.targets:
            if (vm := self._vms.get(target.vm)) is not None:
                self._tell(vm.guest.set_target, target.target_bytes)
        for vm_id, every_s in step.watches:
            if (vm := self._vms.get(vm_id)) is not None:
                self._tell(vm.guest.watch, every_s)
        for vm_id in step.stuck:
            self._failed(StateError(f"{vm_id}: its deadline stays in the past"))
        self._operators.performed(step)
        for vm_id, finding in step.findings:
            self._publish(event_of(vm_id, finding))
        decided_anew = dict[VmId, bool]()
        for vm_id, decision, repeated in step.decisions:
            if not (recheck := decision.reason is Reason.RECHECK):
                self._note(vm_id, decision)
            decided_anew[vm_id] = decided_anew.get(vm_id, False) or not (repeated or recheck)
            self._publish(Decided(vm_id, decision, quiet=quiet or repeated or recheck))
        for vm_id, new in decided_anew.items():
            if (vm := self._vms.get(vm_id)) is not None:
                self._keep(vm_id, vm, new=new)
                if vm.is_to_ask(self._loop.time(), new=new):
                    self._tell(vm.guest.request_stats)

    def _note(self, vm_id: VmId, decision: Decision) -> None:
        self._last = (vm_id, decision, self._loop.time())
        if (vm := self._vms.get(vm_id)) is not None:
            vm.decided = self._last[1:]

    def _keep(self, vm_id: VmId, vm: Vm, *, new: bool) -> None:
        state = self._policy.policy(vm_id).state()
        if new or not vm.has_kept(state, self._settings, self._loop.time()):
            row = VmRow(self._policy.vm_mem_bytes(vm_id), *state)
            vm.kept = state if self._tell(vm.guest.keep, row) else None

    def _tell(self, call: Callable[..., object], *args: object) -> object:
        """Calls a guest's method. Its driver's error must not keep targets from other VMs."""
        try:
            return call(*args)
        except Exception as err:
            self._failed(err)
            return None

    def _failed(self, err: Exception) -> None:
        self._loop.call_exception_handler({"message": "a guest's driver failed", "exception": err})

    def _arm(self, wake_at_s: float | None) -> None:
        if self._timer is not None:
            if self._timer.when() == wake_at_s:
                return
            self._timer.cancel()
            self._timer = None
        if wake_at_s is not None:
            self._timer = self._loop.call_at(wake_at_s, self._woke, wake_at_s)
