"""What is: the host's memory source and every VM's balloon at one moment, as values. Pure.

``controller/governor.py`` makes them on demand, of what is counted anyway. Whoever shows or serves
them knows no controller.
"""

from dataclasses import dataclass

from balloon_daemon.guests.seam import Ability, Refused, Stats, Stuck
from balloon_daemon.sizing.decision import PolicyStatistics
from balloon_daemon.units import VmId


@dataclass(frozen=True, slots=True)
class PolicyStatus:
    """What the balloon policy wants of one VM.

    Attributes:
        vm_mem_bytes: the VM's size that it goes by; 0: there can be no balloon.
        max_balloon_bytes: the most that the balloon may hold.
        level: 0 to ``steps``.
        steps: how many steps there are.
        target_bytes: how large the balloon is to be.
        counters: since this balloond has had the VM.
    """

    vm_mem_bytes: int
    max_balloon_bytes: int
    level: int
    steps: int
    target_bytes: int
    counters: PolicyStatistics


@dataclass(frozen=True, slots=True)
class VmStatus:
    """One VM.

    Attributes:
        vm: which.
        can: what it could do when it attached.
        policy: what is wanted of it; None where it has not reported its size yet.
        balloon_bytes: its balloon's size, as its driver says.
        stats: its guest's last statistics; None: it has sent none.
        trouble: what was last said to be wrong with its balloon; None: nothing is.
    """

    vm: VmId
    can: frozenset[Ability]
    policy: PolicyStatus | None
    balloon_bytes: int
    stats: Stats | None
    trouble: Refused | Stuck | None


@dataclass(frozen=True, slots=True)
class SourceStatus:
    """Where low memory comes from.

    Attributes:
        name: ``chromeos`` or ``meminfo``.
        last_error: why the last reading gave nothing; "" if it did give something.
        reads: how many readings there were.
        unknown: how many of them gave nothing.
        wakeups: how often the kernel woke balloond.
    """

    name: str
    last_error: str
    reads: int
    unknown: int
    wakeups: int


@dataclass(frozen=True, slots=True)
class HostStatus:
    """The host and its VMs.

    Attributes:
        source: where low memory comes from.
        vms: in the order in which they came.
    """

    source: SourceStatus
    vms: tuple[VmStatus, ...]
