"""The events that ``HostPolicy`` handles, and the results of its steps: values only. Pure."""

from balloon_daemon.fact import fact
from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.sizing.balloon_policy import PolicyState
from balloon_daemon.sizing.decision import (
    Decision,
    Ended,
    Finding,
    NeverLow,
    Reading,
    Reason,
    Share,
)
from balloon_daemon.sizing.guard import Lasting
from balloon_daemon.sizing.need import Figures
from balloon_daemon.sizing.terms import Terms
from balloon_daemon.sizing.vm_settings import VmSettings
from balloon_daemon.units import VmId

Seen = Reading | NeverLow | None
"""One reading of the low-memory source; None: its figures are unknown."""


class Added(NamedTuple):
    """A VM of this size has come.

    Attributes:
        vm: which VM.
        vm_mem_bytes: its size.
        balloon_bytes: the size of the balloon that an earlier balloond has left in it.
        terms: its settings and abilities.
    """

    vm: VmId
    vm_mem_bytes: int
    balloon_bytes: int = 0
    terms: Terms = Terms()


class Restored(NamedTuple):
    """A VM has come that another balloond served; its policy goes on from this state.

    Attributes:
        vm: which VM.
        vm_mem_bytes: its size.
        state: its policy's state.
        balloon_bytes: its balloon's size.
        terms: its settings and abilities.
    """

    vm: VmId
    vm_mem_bytes: int
    state: PolicyState
    balloon_bytes: int
    terms: Terms = Terms()


class Resized(NamedTuple):
    """A VM has another size from now on."""

    vm: VmId
    vm_mem_bytes: int


class Removed(NamedTuple):
    """A VM is gone."""

    vm: VmId


class Looked(NamedTuple):
    """The low-memory source was read, because of a poll or the kernel's wake-up."""

    seen: Seen


class Woke(NamedTuple):
    """``wake_at_s`` was reached, and the low-memory source was read."""

    seen: Seen


class Moved(NamedTuple):
    """A careful VM's balloon has this size, as its driver reports it."""

    vm: VmId
    balloon_bytes: int


class Sampled(NamedTuple):
    """A careful VM's guest has sent statistics."""

    vm: VmId
    figures: Figures


class Ran(NamedTuple):
    """A careful VM's guest begins to run with a driver that listens, or no longer does.

    Attributes:
        runs: True: the guest begins to run.
    """

    vm: VmId
    runs: bool


class Measured(NamedTuple):
    """A careful VM's memory occupies so much of the host's."""

    vm: VmId
    held_bytes: int


class Asked(NamedTuple):
    """An operator asks for a balloon's size. Low memory may make the balloon larger later, and a
    guest in need gets its whole balloon back.

    Attributes:
        vm: which VM.
        balloon_bytes: the size, at most the policy's maximum.
        hold_s: how long to wait with a step down, unless memory is low before; None: as long as
            after low memory.
    """

    vm: VmId
    balloon_bytes: int
    hold_s: float | None = None


class SettingsChanged(NamedTuple):
    """An operator has set other settings for a VM, which hold from now on."""

    vm: VmId
    settings: VmSettings


@fact
class Paused(NamedTuple):
    """An operator wants nothing more to be taken for a time.

    Attributes:
        vms: from these VMs; empty: from any VM.
        for_s: for how long.
    """

    vms: tuple[VmId, ...]
    for_s: float


@fact
class Resumed(NamedTuple):
    """An operator wants pauses to end.

    Attributes:
        vms: the pauses of these VMs; empty: all pauses.
    """

    vms: tuple[VmId, ...]


@fact
class Wanted(NamedTuple):
    """An operator wants memory from guests now, and waits for the answer.

    Attributes:
        ticket: the number by which it is withdrawn and answered.
        vms: from these VMs; empty: from any.
        size_bytes: how much.
        within_s: how long to try.
        hold_s: for how long nothing of it is given back, unless memory is low before.
    """

    ticket: int
    vms: tuple[VmId, ...]
    size_bytes: int
    within_s: float
    hold_s: float


@fact
class Reserved(NamedTuple):
    """An operator wants memory to be available above the margin, and waits for the answer.

    Attributes:
        ticket: the number by which it is withdrawn and answered.
        size_bytes: how much.
        within_s: after how long it is answered at the latest.
        for_s: for how long it is to be available.
    """

    ticket: int
    size_bytes: int
    within_s: float
    for_s: float


@fact
class Unreserved(NamedTuple):
    """An operator wants no reserve any more."""


@fact
class Withdrawn(NamedTuple):
    """The operator no longer waits for the answer to the reclaim or reserve of this ticket."""

    ticket: int


@fact
class Halted(NamedTuple):
    """balloond ends: make no more decisions."""


class Found(NamedTuple):
    """A VM as a policy governs it at this moment; no event for ``HostPolicy.step``.

    Attributes:
        vm: the VM.
        vm_mem_bytes: its size.
        state: its policy's state.
        balloon_bytes: its balloon's size.
        terms: its settings and abilities.
        target_bytes: the target that it was sent last.
        held: why no step up was taken at the last low memory; None: nothing was against it.
        lasting: what the ``Guard`` of its guest remembers; None: its profile is ``Profile.SEED``.
        look_at_s: when the policy, for all VMs, looks by itself whether memory is low; None: it
            waits for ``Looked``.
        patience: how often it has waited for VMs of lower priorities, when last (None: never), and
            how often for those of higher ones (``Patience``).
    """

    vm: VmId
    vm_mem_bytes: int
    state: PolicyState
    balloon_bytes: int
    terms: Terms
    target_bytes: int
    held: Reason | None
    lasting: Lasting | None
    look_at_s: float | None = None
    patience: tuple[int, float | None, int] = (0, None, 0)


Reported = Moved | Sampled | Ran | Measured

Steered = Asked | Paused | Resumed | Wanted | Reserved | Unreserved | Withdrawn
"""What operators ask of the policy."""

Event = (
    Added
    | Restored
    | Resized
    | Removed
    | Looked
    | Woke
    | Reported
    | SettingsChanged
    | Steered
    | Halted
)


class Target(NamedTuple):
    """Send this VM its absolute target, in bytes of balloon; perhaps the same target once more."""

    vm: VmId
    target_bytes: int


class VmDecision(NamedTuple):
    """The decision for one VM.

    Attributes:
        vm: which VM.
        decision: the decision and its reason.
        repeated: True: the VM's last decision had the same reason, and neither changed anything.
            Under lasting pressure at the maximum there is one such decision each second.
    """

    vm: VmId
    decision: Decision
    repeated: bool


class VmFinding(NamedTuple):
    """What protection has found about one VM's guest or its balloon (``guard``)."""

    vm: VmId
    finding: Finding


class PauseOver(NamedTuple):
    """The time of a pause is over.

    Attributes:
        vm: the VM that was paused; None: the pause was of all VMs.
    """

    vm: VmId | None


class ReclaimOver(NamedTuple):
    """A reclaim has ended.

    Attributes:
        wanted: what was wanted.
        why: why it has ended.
        took_s: how long it took.
        shares: what each VM was asked for, and why it was not asked for more.
    """

    wanted: Wanted
    why: Ended
    took_s: float
    shares: tuple[Share, ...]


class ReserveAnswered(NamedTuple):
    """The operator who has reserved memory is answered; the reserve goes on.

    Attributes:
        reserved: what was reserved.
        why: why the wait has ended.
        took_s: how long it took.
        reading: what is available, and the margin with all reserves; None: unknown.
        shares: if less than that is available: what is against asking each VM for more.
    """

    reserved: Reserved
    why: Ended
    took_s: float
    reading: Reading | None
    shares: tuple[Share, ...]


class ReserveOver(NamedTuple):
    """A reserve has ended."""

    reserved: Reserved
    why: Ended


Over = PauseOver | ReclaimOver | ReserveAnswered | ReserveOver
"""The end of a pause, reclaim or reserve that an operator had asked for, or the answer to one."""


class Watch(NamedTuple):
    """Read a VM's figures each ``every_s`` seconds from now on; None: only when asked."""

    vm: VmId
    every_s: float | None


class HostStep(NamedTuple):
    """The result of a step.

    Attributes:
        targets: the VMs' new targets, to be sent in this order before anything else is done.
        decisions: the decisions, in the order in which they were made.
        wake_at_s: when to step with ``Woke``, on the clock given to ``step``; None: never.
        listen: whether to step with ``Looked`` at each poll and each wake-up by the kernel.
        findings: what was noticed, before the decisions that follow from it.
        watches: how often to read VMs' figures, where that changes.
        over: the pauses, reclaims and reserves that have ended, and answers to who has reserved.
        stuck: VMs with a deadline that stays in the past however often it fires, which is a bug.
            The deadline is dropped until another event queues it again.
        late_s: by how many seconds ``Woke`` may come later than ``wake_at_s``: no deadline that
            could change a target is due before then.
    """

    targets: tuple[Target, ...]
    decisions: tuple[VmDecision, ...]
    wake_at_s: float | None
    listen: bool
    findings: tuple[VmFinding, ...] = ()
    watches: tuple[Watch, ...] = ()
    over: tuple[Over, ...] = ()
    stuck: tuple[VmId, ...] = ()
    late_s: float = 0.0
