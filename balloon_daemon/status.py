"""The state of the low-memory source and of every VM's balloon at one moment. Pure values.

``controller/statuses.py`` makes them on demand, from counters that exist anyway. Readers of a
status need not know the controller.
"""

from balloon_daemon.guests.seam import Ability, GuestState, Refused, Stats, Stuck
from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.sizing.decision import (
    Decision,
    NeverLow,
    PolicyStatistics,
    Reading,
    Reason,
    Sign,
)
from balloon_daemon.sizing.vm_settings import SEED, VmSettings
from balloon_daemon.units import VmId


class PolicyStatus(NamedTuple):
    """The state of one VM's ``BalloonPolicy``, which steps its balloon up and down.

    Attributes:
        vm_mem_bytes: the VM's size as the policy uses it; 0: the VM can have no balloon.
        max_balloon_bytes: the balloon's greatest size.
        level: how many of the ``steps`` the wanted balloon has; 0: an empty balloon.
        steps: the number of steps from an empty balloon to the greatest size.
        target_bytes: the balloon's wanted size.
        counters: counted since this balloond began to serve the VM.
        recheck_in_s: in how many seconds the policy reacts to low memory again; None: it reacts
            now.
        release_in_s: in how many seconds a step down is tried; None: there is nothing to release.
        needed_mib: how much the host must have available for a step down, in MiB, while no VM of a
            higher priority has a balloon; None: the margin is not known.
        aim_mib: of an adaptive VM: while the host has less available than this, guests are asked
            for memory.
    """

    vm_mem_bytes: int
    max_balloon_bytes: int
    level: int
    steps: int
    target_bytes: int
    counters: PolicyStatistics
    recheck_in_s: float | None = None
    release_in_s: float | None = None
    needed_mib: int | None = None
    aim_mib: int | None = None


class LastDecision(NamedTuple):
    """A decision, and its age.

    Attributes:
        vm: the VM.
        decision: the decision.
        age_s: how many seconds ago it was made.
    """

    vm: VmId
    decision: Decision
    age_s: float


class ProtectionStatus(NamedTuple):
    """How the guest of a VM of the profile careful or adaptive is protected from being asked for
    memory.

    Attributes:
        objection: why the guest must not be asked for more at this moment; None: nothing is
            against it.
        signs: what showed that the guest needs memory, if it is left alone because of that.
        left_alone_s: for how many seconds more the guest is left alone; 0: it is not left alone.
        stats_age_s: how old the guest's statistics are; None: it has sent none.
        missing_bytes: how many bytes of the balloon are still allocated on the host; 0: none.
    """

    objection: Reason | None
    signs: frozenset[Sign]
    left_alone_s: float
    stats_age_s: float | None
    missing_bytes: int


class VmStatus(NamedTuple):
    """One VM.

    Attributes:
        vm: which VM.
        can: its abilities, as its guest reported them last.
        policy: the state of its ``BalloonPolicy``; None where the guest has not reported its size
            yet.
        balloon_bytes: its balloon's size, as its driver reports it.
        stats: its guest's last statistics; None: it has sent none.
        trouble: the last report of trouble with its balloon; None: there is none.
        settings: its operator's settings.
        state: the guest's state.
        held_bytes: how much of the host's memory it occupies; None where that is not known.
        protection: its guest's protection; None where its profile has none, or its size is not
            known yet.
        kind: how the VM's balloon is reached, as the configuration file calls it.
        decided: its last decision other than ``Reason.RECHECK``; None: there was none.
        vmm_pid: its VMM's process; None: unknown.
        paused_s: for how many seconds more nothing is taken, because an operator has paused this
            VM; None: it is not paused by itself.
    """

    vm: VmId
    can: frozenset[Ability]
    policy: PolicyStatus | None
    balloon_bytes: int
    stats: Stats | None
    trouble: Refused | Stuck | None
    settings: VmSettings = SEED
    state: GuestState = GuestState.RUNNING
    held_bytes: int | None = None
    protection: ProtectionStatus | None = None
    kind: str = ""
    decided: LastDecision | None = None
    vmm_pid: int | None = None
    paused_s: float | None = None


class SourceStatus(NamedTuple):
    """The low-memory source.

    Attributes:
        name: ``chromeos`` or ``meminfo``.
        last_error: why the last reading was unknown; "" where it was known.
        reads: how many readings there were.
        unknown: how many readings found no figures.
        wakeups: how often the kernel's low-memory alarm woke balloond.
        seen: the last reading; None: its figures are unknown.
        age_s: how many seconds ago the last reading was; None: there was none yet.
    """

    name: str
    last_error: str
    reads: int
    unknown: int
    wakeups: int
    seen: Reading | NeverLow | None = None
    age_s: float | None = None


class ReclaimStatus(NamedTuple):
    """A ``Reclaim`` that goes on: an operator wants memory from guests now.

    Attributes:
        wanted_bytes: how much memory.
        came_bytes: how much of it the balloons hold by now.
        left_s: for how many seconds more guests are asked.
    """

    wanted_bytes: int
    came_bytes: int
    left_s: float


class HostStatus(NamedTuple):
    """The host, without its VMs. A reader asks for each VM's status by itself, so that the event
    loop can serve VMs in between, even where there are a thousand.

    Attributes:
        source: the low-memory source.
        decided: the last decision about any VM, ``Reason.RECHECK`` left out; None: there was none.
        wake_in_s: in how many seconds the sizing policy's earliest deadline comes; None: there is
            none.
        listens: whether the sizing policy reacts to low memory now.
        dry_run: whether no VM's balloon is changed (``--dry-run``).
        paused_s: for how many seconds more nothing is taken from any VM, because an operator has
            paused all; None: they are not paused.
        reclaims: the reclaims that go on.
        reserves: for each ``Reserve`` in force, its size in bytes, and for how many seconds more
            it is in force.
        reserved_mib: the sum of all reserves, in MiB.
    """

    source: SourceStatus
    decided: LastDecision | None = None
    wake_in_s: float | None = None
    listens: bool = False
    dry_run: bool = False
    paused_s: float | None = None
    reclaims: tuple[ReclaimStatus, ...] = ()
    reserves: tuple[tuple[int, float], ...] = ()
    reserved_mib: int = 0


class Undriven(NamedTuple):
    """A VM that balloond has found or was told of, but whose balloon it cannot drive.

    Attributes:
        name: its name.
        address: its socket's path, or its connection URI.
        fault: why; the value of a ``Fault``.
        why: the fault as a sentence.
    """

    name: str
    address: str
    fault: str
    why: str


class OwnFigures(NamedTuple):
    """Figures of balloond's own process; None: not known.

    Attributes:
        resident_bytes: memory that it occupies, shared memory included.
        virtual_bytes: its address space.
        cpu_s: processor time, in user and kernel mode, without that of its children.
        started_s: when it was started, in seconds since the epoch.
        open_fds: how many descriptors it has open; known from Linux 6.2 on.
        most_fds: how many it may have open (RLIMIT_NOFILE).
    """

    resident_bytes: int | None
    virtual_bytes: int | None
    cpu_s: float
    started_s: float | None
    open_fds: int | None
    most_fds: int
