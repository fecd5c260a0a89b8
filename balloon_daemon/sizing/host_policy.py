"""How big every balloon of the host should be: one unchanged ``BalloonPolicy`` for each VM.

Pure. Runs in the controller; events, a clock reading and one reading of the host's memory in,
targets out. The class does no I/O, reads no clock and draws no random number.

Theory of operation
    Each VM's policy keeps its own level and its two deadlines: the *recheck* (listen to low memory
    again) and the *release* (try a step down). This class fires the deadlines, and gives one
    reading of the host to all VMs that a step concerns.

    ============  =================================================================================
    event         what happens
    ============  =================================================================================
    ``Added``     a VM of known size: its balloon is told to be empty, or is adopted as it is
    ``Restored``  a VM that another balloond governed goes on from its level and deadlines
    ``Resized``   a VM has another size: its maximum follows
    ``Removed``   a VM is gone
    ``Looked``    host memory was read: low memory is told to every policy that listens
    ``Woke``      ``wake_at_s`` has come: every deadline that is due fires, the earliest first;
                  where a VM listens again the reading counts as ``Looked``, too
    ``Moved`` …   a careful VM's guest reports: ``protection`` may give its memory back, or ask it
                  for no more
    ``Asked``     an operator asks for a balloon's size: it becomes the target, to the byte
    ``Settings…`` a VM has other settings: what is above its new maximum is given back
    ``Paused`` …  an operator wants nothing more to be taken for a time (``steering``)
    ``Wanted`` …  an operator wants memory now, and waits for the answer (``steering``)
    ``Reserved``  an operator wants more to be available for a time: the margin is larger by it
    any reading   ``adaptive`` sizes the balloons of all adaptive VMs at once, each second
    ``Halted``    nothing is decided any more, nor any VM added
    ============  =================================================================================

    A VM that is added, restored or listens again gets a reading at once: otherwise it would notice
    low memory only at the next poll, and reach its maximum later than promised. For a VM that is
    added or restored, ``wake_at_s`` is set to the present, so that all VMs added at one moment
    share the reading.

    **An event that makes no sense raises StateError and changes nothing**: an event about an
    unknown VM, or one that adds a VM twice or restores a VM to a state that no policy can be in.
"""

import math
from collections import Counter
from collections.abc import Callable

from balloon_daemon.errors import StateError
from balloon_daemon.sizing.adaptive import Adaptive, Aim
from balloon_daemon.sizing.admission import Admission
from balloon_daemon.sizing.balloon_policy import (
    BalloonPolicy,
    LowMemory,
    LowMemoryTimer,
    PolicySettings,
)
from balloon_daemon.sizing.deadlines import Deadlines
from balloon_daemon.sizing.decision import Reading, Reason
from balloon_daemon.sizing.guard import Guard
from balloon_daemon.sizing.host_events import (
    Added,
    Event,
    Halted,
    HostStep,
    Looked,
    Measured,
    Moved,
    Ran,
    Removed,
    Resized,
    Restored,
    Sampled,
    Seen,
    SettingsChanged,
    Woke,
)
from balloon_daemon.sizing.new_settings import NewSettings
from balloon_daemon.sizing.outcome import Outcome
from balloon_daemon.sizing.priorities import Priorities
from balloon_daemon.sizing.protection import Protection
from balloon_daemon.sizing.row import Row
from balloon_daemon.sizing.steering import Steering
from balloon_daemon.units import VmId

MOST_AT_ONCE = 8
"""How many times one VM's deadlines may fire in one ``Woke``. A VM has two deadlines in its policy
and one in its guard, and each deadline moves into the future when it fires."""


def _priority_of(item: tuple[VmId, Row]) -> int:
    return item[1].priority


class HostPolicy:
    """The balloon policies of all VMs of one host.

    Args:
        settings: the policies' numbers.
        draw: gives a uniform number of [0, 1); called once for each timer that is armed.
        against_more: (VM, its level) -> why the VM must not be asked for more just now, or None;
            called for each listening VM when memory is low. It must not raise.
    """

    def __init__(
        self,
        settings: PolicySettings,
        draw: Callable[[], float],
        against_more: Callable[[VmId, int], Reason | None],
    ) -> None:
        self._against_more = against_more
        self._rows: dict[VmId, Row] = {}
        self._listening: dict[VmId, Row] = {}
        self._priorities = Priorities(self._rows)
        self._protection = Protection()
        self._adaptive = Adaptive(self._rows, self._priorities, settings, self._objection)
        self._admission = Admission(
            self._rows, settings, draw, self._priorities, self._protection, self._adaptive
        )
        self._new_settings = NewSettings(self._priorities, self._protection, self._adaptive)
        self._deadlines = Deadlines(self._rows)
        self.steering = Steering(self._rows, self._protection, settings.recheck_s, self._objection)
        """The operators' pauses, reclaims and reserves; for other objects only to read."""
        self._look_at_s = math.inf
        self._halted = False

    def step(self, event: Event, now_s: float) -> HostStep:
        """Handles one event.

        Args:
            event: the event.
            now_s: the clock, in seconds; only its differences between calls matter.

        Raises:
            StateError: the event makes no sense; nothing has changed.
        """
        outcome = Outcome(self._deadlines, self._priorities, now_s)
        match event:
            case Added(vm):
                self._require_new(vm)
                if not self._halted:
                    # Add no VM once balloond ends (``Halted``): its guest would give pages for a
                    # target, and no later step would give them back.
                    self._listen(vm, self._admission.add(event, outcome), now_s)
            case Restored(vm):
                self._require_new(vm)
                policy = self._admission.restored(event)
                if not self._halted:
                    self._listen(vm, self._admission.restore(event, policy, outcome), now_s)
            case Resized(vm, vm_mem_bytes):
                row = self._row(vm)
                if not self._halted:
                    self._admission.resize(vm, row, vm_mem_bytes, outcome)
            case Removed(vm):
                self._priorities.remove(self._row(vm))
                del self._rows[vm]
                self._protection.remove(vm)
                self._adaptive.remove(vm)
                self.steering.remove(vm)
                self._listening.pop(vm, None)
            case Looked() | Woke():
                seen = self.steering.reserves.saw(event.seen, now_s)
                self._protection.saw(seen, outcome)
                if isinstance(event, Looked):
                    self._look(seen, outcome)
                else:
                    self._wake(seen, outcome)
                self._adaptive.look(seen, outcome)
            case Moved() | Sampled() | Ran() | Measured():
                row = self._row(event.vm)
                if not self._halted:
                    self._protection.take(event, row, outcome)
            case SettingsChanged():
                if not self._halted:
                    row = self._row(event.vm)
                    self._new_settings.take(event, row, outcome)
                    self._listen(event.vm, row, now_s)
            case Halted():
                self._halted = True
                self.steering.halt(outcome)
                self._listening.clear()
                self._deadlines.clear()
                self._adaptive.halt()
                self._look_at_s = math.inf
            case _:
                self.steering.take(event, outcome, halted=self._halted)
        self.steering.pass_time(outcome)
        next_s = min(self._look_at_s, self.steering.next_s, self._adaptive.next_s)
        wake_at_s = min(self._deadlines.earliest_s(), next_s)
        latest_s = min(self._deadlines.latest_s(), next_s)
        listen = bool(self._listening) or self._adaptive.listens
        return outcome.step(wake_at_s, latest_s, listen=listen)

    def ignores(self, seen: Seen) -> bool:
        """Whether ``step`` with ``Looked`` would surely change nothing now: far more is available
        than the margin, and nothing waits for a reading.

        Saves most steps: the source is polled each second for as long as balloond runs.
        """
        return (
            isinstance(seen, Reading)
            and self._look_at_s == self.steering.next_s == self._adaptive.next_s == math.inf
            and self._protection.ignores(seen)
        )

    def note_actual(self, vm: VmId, actual_bytes: int) -> None:
        """Notes the size of a VM's balloon, as its driver reports it; decides nothing.

        Not an event, because it is called for each MiB of any guest's balloon.
        """
        self._row(vm).actual_bytes = actual_bytes

    @property
    def halted(self) -> bool:
        """Whether nothing is decided any more."""
        return self._halted

    def governs(self, vm: VmId) -> bool:
        """Whether the VM was added or restored, and not removed."""
        return vm in self._rows

    def policy(self, vm: VmId) -> BalloonPolicy:
        """The VM's policy, for reading. Raises StateError: the VM has none."""
        return self._row(vm).policy

    def target_bytes(self, vm: VmId) -> int:
        """The target that the VM was sent last. Raises StateError: the VM has no policy."""
        return self._row(vm).told_bytes

    def aim(self, vm: VmId) -> Aim | None:
        """How much the host is to have available for an adaptive VM's balloon to stay as it is;
        None: the VM is not adaptive, or the host's figures are unknown.

        Raises:
            StateError: the VM has no policy.
        """
        return self._adaptive.aim if self._row(vm).terms.is_adaptive else None

    def guard(self, vm: VmId) -> Guard | None:
        """The protection of the VM's guest, for reading; None: the profile is ``Profile.SEED``.

        Raises:
            StateError: the VM has no policy.
        """
        return self._row(vm).guard

    def vm_mem_bytes(self, vm: VmId) -> int:
        """The VM size that its policy uses. Raises StateError: the VM has no policy."""
        return self._row(vm).vm_mem_bytes

    # --- VMs ----------------------------------------------------------------------------------

    def _listen(self, vm: VmId, row: Row, now_s: float) -> None:
        """Lets a VM's policy listen to low memory, with a reading at once. For adaptive VMs
        ``Adaptive`` listens instead."""
        if row.terms.is_adaptive:
            self._listening.pop(vm, None)
        elif row.policy.listening and vm not in self._listening:
            self._listening[vm] = row
            self._look_at_s = now_s

    def _row(self, vm: VmId) -> Row:
        row = self._rows.get(vm)
        if row is None:
            raise StateError(f"{vm} has no policy")
        return row

    def _require_new(self, vm: VmId) -> None:
        if vm in self._rows:
            raise StateError(f"{vm} has a policy already")

    # --- memory and time ----------------------------------------------------------------------

    def _look(self, seen: Seen, outcome: Outcome) -> None:
        """Steps every listening VM if memory is low; none of them listens afterwards."""
        self._look_at_s = math.inf
        if not isinstance(seen, Reading) or not seen.is_low:
            return
        listening, self._listening = self._listening, {}
        rows = listening.items()
        lowest = outcome.lowest_that_can_give
        for vm, row in rows if lowest is None else sorted(rows, key=_priority_of):
            if row.guard is None and row.is_full and not self._priorities.differ:
                # Low memory cannot raise this VM's target. So do not ask the VM's driver for an
                # objection (``_against_more``), which may look at the guest's memory files.
                held = self.steering.pauses.objection(vm)
            else:
                held = self._objection(vm, row, outcome)
            if held is None and self._priorities.must_wait(row, lowest, outcome.now_s):
                held = Reason.LOWER_FIRST
            row.patience.waits_down = 0
            row.policy.held = held
            outcome.take(vm, row, row.policy.step(LowMemory(seen), outcome.now_s))
            if row.guard is None and held is not Reason.PAUSED:
                outcome.tell_again_if_stopped(vm, row)

    def _objection(self, vm: VmId, row: Row, outcome: Outcome) -> Reason | None:
        """Why a VM must not be asked for more now; None: it may be asked."""
        held = self.steering.pauses.objection(vm)
        if held is None and row.guard is not None:
            held = self._protection.objection(vm, row, row.guard, outcome)
        return self._against_more(vm, row.policy.level) if held is None else held

    def _wake(self, seen: Seen, outcome: Outcome) -> None:
        now_s = outcome.now_s
        if self._listening and self.steering.reserves.next_s <= now_s:
            self._look_at_s = now_s
        fired = Counter[VmId]()
        while True:
            earliest_s = self._deadlines.earliest_s()
            if self._look_at_s <= min(now_s, earliest_s):
                self._look(seen, outcome)
                earliest_s = self._deadlines.earliest_s()
            if earliest_s > now_s:
                break
            vm = self._deadlines.first()
            fired[vm] += 1
            if fired[vm] > MOST_AT_ONCE:
                # This is a bug. Without the limit this loop would never end, and no other VM would
                # be served.
                self._deadlines.drop_first()
                outcome.note_stuck(vm)
                continue
            row = self._rows[vm]
            state = row.policy.state()
            deadline_s = row.deadline_s
            if row.guard is not None and row.guard.check_at_s == deadline_s:
                self._protection.judge(vm, row, row.guard, outcome)
            elif state.recheck_at_s == deadline_s:
                outcome.take(vm, row, row.policy.step(LowMemoryTimer(), now_s))
                self._listening[vm] = row
                # This VM listens to low memory again, so check now whether memory is low. Low
                # memory postpones the release of every listening VM's balloon, so this check comes
                # before all releases that are due.
                self._look(seen, outcome)
            else:
                outcome.take(vm, row, self._priorities.release(row, seen, now_s))
