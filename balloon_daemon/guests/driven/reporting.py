"""Turns a driven VM's samples into reports to the controller.

Runs in the controller. A size that is out of range is not reported but raised as the VMM's fault.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from balloon_daemon.events import BaseFound, NoDriverYet, Publish, Refilled, VmmRefuses
from balloon_daemon.events.driven import Fault
from balloon_daemon.guests.driven.bases import BaseKey, Bases, base_keys
from balloon_daemon.guests.driven.claims import Claims, SocketId
from balloon_daemon.guests.driven.control import Control, ControlError, Found, Sample
from balloon_daemon.guests.driven.host_side import HostSide
from balloon_daemon.guests.driven.lookups import LOOKUPS, Ask
from balloon_daemon.guests.driven.refill import Refill
from balloon_daemon.guests.driven.target import BalloonTarget
from balloon_daemon.guests.seam import (
    Ability,
    Actual,
    Attached,
    GuestState,
    Held,
    ReportTo,
    Resized,
    StateChanged,
    Stats,
    Stuck,
)
from balloon_daemon.rate_limit import LineBudget, OnceEach
from balloon_daemon.units import MOST_MEMORY_BYTES, VmId

LOOK_S = 30.0
"""How often to look for a reason not to drive a VM any more, such as a device assigned to it."""

REFUSALS = 32
"""How many different refusals are published for one VM, each once."""

NOT_TO_BE_DRIVEN = (Fault.PINNED, Fault.HUGETLB, Fault.OWN_DEVICE)
"""The faults for which a VM is not driven although its balloon can be set: a balloon would free
nothing, or the VM's balloon is driven in another way."""

STATE_LINES, STATE_LINES_A_SECOND = 8, 1 / 30
"""How often ``NoDriverYet`` is published for one VM: ``STATE_LINES`` times at once, then
``STATE_LINES_A_SECOND`` times a second. A guest may reset itself without end."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What all driven VMs of a controller share.

    Attributes:
        publish: takes events.
        report: takes reports to the controller.
        bases: the balloons that VMs had before balloond.
        is_own: tells by a VMM's pid whether its VM is attached to balloond's own device.
        claims: which VMs are driven.
        ask: looks paths up.
        vms_of: how many VMs of each user are driven.
    """

    publish: Publish
    report: ReportTo
    bases: Bases
    is_own: Callable[[int], bool] = lambda pid: False
    claims: Claims = field(default_factory=Claims)
    ask: Ask = LOOKUPS.ask
    vms_of: Counter[int] = field(default_factory=Counter)


@dataclass(slots=True)
class _Said:
    """The size and the state of a VM that were reported last.

    Attributes:
        size_bytes: the VM's size; None: it is not attached yet.
        state: the guest's state.
    """

    size_bytes: int | None = None
    state: GuestState = GuestState.RUNNING


class Reporter:
    """Reports one VM's figures.

    Args:
        vm: the VM.
        found: its first figures.
        host: its VMM's process.
        shared: what all driven VMs share.
        socket: its VMM's socket; None: unknown.
    """

    def __init__(
        self,
        vm: VmId,
        found: Found,
        host: HostSide,
        shared: Shared,
        socket: SocketId | None = None,
    ) -> None:
        self._vm = vm
        self._host = host
        self._shared = shared
        self._can = found.can | {Ability.KEPT_BY_VMM}
        if host.tells_disk_reads:
            self._can |= {Ability.DISK_READS}
        self.state = GuestState.RUNNING
        self._said = _Said()
        known = None if found.state is GuestState.NO_DRIVER else found.balloon_bytes
        self.key, *earlier = keys_of(vm.name, socket, found, host)
        noted = shared.bases.know(self.key, earlier)
        if found.restored is not None:
            shared.bases.move(self.key, host.user, restored=found.restored)
        shared.bases.hold(self.key, host.user)
        base_bytes = shared.bases.get(self.key)
        is_same = noted.start_time > 0
        self.balloon = BalloonTarget(found.vm_mem_bytes, known, base_bytes, is_same=is_same)
        self._refill = Refill(self.balloon)
        self._refusals = OnceEach(REFUSALS)
        self._states = LineBudget(STATE_LINES, STATE_LINES_A_SECOND)
        self._look_at_s = 0.0

    @property
    def sends_stats(self) -> bool:
        """Whether the guest can send statistics."""
        return Ability.STATS in self._can

    def found(self, found: Found, now_s: float) -> None:
        """Reports a VM's first figures."""
        self._look_at_s = now_s + LOOK_S
        self.take(Sample(found.vm_mem_bytes, found.balloon_bytes, found.state, None, now_s), now_s)

    async def look(self, now_s: float) -> None:
        """Looks at the VMM's process, each ``LOOK_S``.

        Raises:
            ControlError: the VM must not be driven any more.
        """
        if now_s < self._look_at_s:
            return
        self._look_at_s = now_s + LOOK_S
        try:
            await check_process(self._host, self._shared)
        except ControlError as err:
            if err.fault is not Fault.HANGS:
                raise

    def take(self, sample: Sample, now_s: float) -> None:
        """Reports a VM's figures.

        Raises:
            ControlError: a figure is out of range.
        """
        check_sizes(sample.vm_mem_bytes, sample.balloon_bytes)
        self.state = sample.state
        self._report_state(now_s)
        # Without a driver the VM has all of its memory, whatever its VMM reports.
        known = None if sample.state is GuestState.NO_DRIVER else sample.balloon_bytes
        was_changed = self.balloon.changed
        self.balloon.take(sample.vm_mem_bytes, known)
        if was_changed and not self.balloon.changed:
            self._shared.bases.forget(self.key)
        elif was_changed and self.balloon.base_bytes != self._shared.bases.get(self.key):
            # The noted base was another VM's, and too large: note this VM's own. It is written to
            # the file before the next target is sent.
            self._shared.bases.note(self.key, self.balloon.base_bytes)
        self._report_size(known, sample.at_s)
        if sample.stats is not None:
            self._report_stats(sample.stats)
        held_bytes = self._host.held_bytes()
        if held_bytes is not None and not self._host.has_memory_file:
            # This is the resident set of the VMM's process, in which memory beside the VM's size,
            # such as virtio-mem's, counts too.
            held_bytes = max(0, held_bytes - sample.apart_bytes)
        if held_bytes is not None:
            self._shared.report(self._vm, Held(held_bytes, now_s))
        if (
            self._host.has_memory_file
            and self.state is GuestState.RUNNING
            and (over_bytes := self._refill.look(held_bytes))
        ):
            self._shared.publish(Refilled(self._vm, over_bytes))
        self._report_state(now_s)

    def reset(self, now_s: float) -> None:
        """Notes that the guest was reset: its balloon's size is not known, whatever is reported,
        until its next driver listens."""
        self.balloon.take(self.balloon.vm_mem_bytes, None)
        self.state = GuestState.NO_DRIVER
        self._report_state(now_s)

    async def let_go(self, control: Control) -> None:
        """Gives all back to a VM that must not be driven, without waiting for its guest.

        Raises:
            ControlError: its VMM does not take the target. The VM's base stays noted, so a later
                attempt can give the memory back.
        """
        self.balloon.want(0)
        if (balloon_bytes := self.balloon.due()) is not None:
            await control.set_balloon(balloon_bytes)
            self._shared.bases.forget(self.key)

    def ended(self) -> None:
        """Notes that the VM is driven no more."""
        self._shared.bases.release(self.key)
        # Close the process's files now: whatever refers to this VM by then may live until the
        # garbage collector's next look at old objects, and VMs may come and go by the dozen.
        self._host.close()

    def refilled(self) -> None:
        """Notes that the VMM has read all of the guest's memory."""
        self._refill.notice()

    def refused(self, detail: str) -> None:
        """Reports that the VMM refuses a call."""
        self._shared.report(self._vm, Stuck(Fault.REFUSED.value))
        quiet = not self._refusals.admit(detail)
        self._shared.publish(VmmRefuses(self._vm, detail, quiet))

    def _report_state(self, now_s: float) -> None:
        retaking = self.state is GuestState.RUNNING and self.balloon.most_bytes is not None
        state = GuestState.RETAKING if retaking else self.state
        if state is self._said.state:
            return
        self._said.state = state
        self._shared.report(self._vm, StateChanged(state))
        if state is GuestState.NO_DRIVER and self._states.has_one(now_s):
            self._shared.publish(NoDriverYet(self._vm))

    def _report_size(self, known: int | None, at_s: float) -> None:
        size_bytes, taken_bytes = self.balloon.size_bytes, self.balloon.taken_bytes
        if known is not None:
            self._shared.report(self._vm, Actual(taken_bytes, at_s))
        if self._said.size_bytes is None:
            if known is None:
                # Without a driver the balloon cannot be moved: do not report ``Attached`` yet.
                return
            if self.balloon.base_bytes:
                self._shared.publish(BaseFound(self._vm, self.balloon.base_bytes))
            pid = self._host.pid or None
            attached = Attached(size_bytes, self._can, taken_bytes, vmm_pid=pid)
            self._said.size_bytes = size_bytes
            self._shared.report(self._vm, attached)
        elif size_bytes != self._said.size_bytes:
            self._said.size_bytes = size_bytes
            self._shared.report(self._vm, Resized(size_bytes))

    def _report_stats(self, stats: Stats) -> None:
        if stats.disk_read_bytes is None:
            stats = replace(stats, disk_read_bytes=self._host.disk_read_bytes())
        self._shared.report(self._vm, stats)


def keys_of(name: str, socket: SocketId | None, found: Found, host: HostSide) -> list[BaseKey]:
    """The keys of a VM's base (``base_keys``)."""
    saves = found.restored is not None
    return base_keys(name, socket, found.vm_uuid, host.pid, host.started, saves=saves)


def check_sizes(vm_mem_bytes: int, balloon_bytes: int | None) -> None:
    """Raises ControlError: no VM has such sizes."""
    if not 0 < vm_mem_bytes <= MOST_MEMORY_BYTES:
        raise ControlError(Fault.NONSENSE, f"VM size {vm_mem_bytes}")
    if balloon_bytes is not None and not 0 <= balloon_bytes <= vm_mem_bytes:
        raise ControlError(Fault.NONSENSE, f"balloon {balloon_bytes} of VM size {vm_mem_bytes}")


async def check_process(host: HostSide, shared: Shared) -> None:
    """Raises ControlError: the VM of this VMM's process must not be driven, or, ``HANGS``, the
    process cannot be looked at now."""
    if host.pid and shared.is_own(host.pid):
        raise ControlError(Fault.OWN_DEVICE)
    if (fault := await host.look(shared.ask)) is not None:
        raise ControlError(fault)
