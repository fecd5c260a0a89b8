"""Readings and decisions of the balloon policy: one record for each step, for logs and metrics.

Pure: values only. ``balloon_policy`` makes them, the controller publishes them.
"""

from enum import Enum

from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.units import VmId


class Reading(NamedTuple):
    """The reading of a low-memory source at one moment, in MiB.

    Attributes:
        within: The file of the cgroup limit to which the reading applies; "": the whole host.
        reserved_mib: How much of the margin operators have reserved for a time (``reserves``).
    """

    available_mib: int
    margin_mib: int
    within: str = ""
    reserved_mib: int = 0

    @property
    def is_low(self) -> bool:
        """Whether this is low memory: less available than the margin."""
        return self.available_mib < self.margin_mib


class NeverLow(NamedTuple):
    """The reading of a source that is switched off: no memory is low, however little is available.

    Attributes:
        why: What switched it off.
    """

    why: str


class Reason(Enum):
    """Why a step of the policy changed a VM's target, or left it; the value is the word for a log
    line or a metric's label."""

    LOW_MEMORY = "low-memory"
    RUNNING_LOW = "running-low"
    UNUSED = "unused"
    AT_MAXIMUM = "at-maximum"
    NO_BALLOON = "no-balloon"
    RECHECK = "recheck"
    MEMORY_BACK = "memory-back"
    NOT_ENOUGH_BACK = "not-enough-back"
    UNKNOWN = "unknown"
    SWITCHED_OFF = "switched-off"
    ALL_RETURNED = "all-returned"
    RESTORED = "restored"
    RESIZED = "resized"
    ADOPTED = "adopted"
    FRUITLESS = "fruitless"
    NO_ROOM = "no-room"
    LOWER_FIRST = "lower-priority-first"
    NOTHING_TO_SPARE = "nothing-to-spare"
    ENOUGH_ASKED = "enough-asked"
    JUST_LOWERED = "just-lowered"
    IN_NEED = "in-need"
    STALLED = "stalled"
    CONTESTED = "contested"
    NO_FRESH_STATS = "no-fresh-stats"
    NOT_RUNNING = "not-running"
    LIMITS_CHANGED = "limits-changed"
    ASKED = "asked"
    PAUSED = "paused"
    RECLAIMED = "reclaimed"
    WITHDRAWN = "withdrawn"


class Sign(Enum):
    """What shows that a guest needs its memory; the value is the word for a metric's label."""

    LITTLE_AVAILABLE = "little-available"
    """Little memory is left that could be had without swapping."""
    SWAPS_IN = "swaps-in"
    """The guest reads from swap what it had written there."""
    READS_DISK = "reads-disk"
    """The guest has no free memory, and reads far more from its disks than before the squeeze."""
    FAULTS = "major-faults"
    """The guest has no free memory, and has far more page faults that read a file or swap (major
    faults) than before the squeeze."""
    STUCK = "stuck"
    """The guest has no free memory, and its balloon does not grow towards its target."""
    KILLED = "killed"
    """The guest's kernel has killed a process for lack of memory."""
    TOOK_BACK = "took-back"
    """The guest's balloon has shrunk although balloond has sent no lower target."""


class Missing(Enum):
    """Why the host has not got the memory that a guest gave; the value is the word for a metric's
    label."""

    NOTHING = "nothing"
    """No memory is missing any more."""
    NEVER_FREED = "never-freed"
    """The memory was not freed: it is not shared, consists of huge pages, or is pinned for a
    device."""
    REFILLED = "refilled"
    """The memory was freed, and allocated again when something read all of the VM's memory, as
    migrations and snapshots do."""


class InNeed(NamedTuple):
    """A guest is in need: its whole balloon is given back at once.

    Attributes:
        signs: what shows it.
        balloon_bytes: its balloon's size.
        left_alone_s: for how long the guest is asked for nothing.
    """

    signs: frozenset[Sign]
    balloon_bytes: int
    left_alone_s: float


class Stalled(NamedTuple):
    """A balloon does not grow towards its target: the squeeze ends at the balloon's present size.

    Attributes:
        target_bytes: the target.
        balloon_bytes: the balloon's size.
        left_alone_s: for how long the guest is asked for no more.
    """

    target_bytes: int
    balloon_bytes: int
    left_alone_s: float


class Contested(NamedTuple):
    """Somebody else sets a balloon's size: no targets are sent for a time.

    Attributes:
        target_bytes: the target.
        balloon_bytes: the size that somebody else has set.
        left_alone_s: for how long no targets are sent.
    """

    target_bytes: int
    balloon_bytes: int
    left_alone_s: float


class Balance(NamedTuple):
    """Memory of a balloon that the host has not got: some is missing now, or none any more.

    Attributes:
        missing: the likely cause; NOTHING: none is missing any more.
        missing_bytes: how many bytes the host has not got.
        balloon_bytes: the balloon's size.
    """

    missing: Missing
    missing_bytes: int
    balloon_bytes: int


Finding = InNeed | Stalled | Contested | Balance
"""What protection has found about one VM's guest or its balloon (``guard``)."""


class Ended(Enum):
    """Why a reclaim or a reserve has ended; the value is the word for a log line or an answer."""

    COMPLETE = "complete"
    """All of the memory has come."""
    TIME = "time"
    """Its time was over."""
    NOBODY = "nobody"
    """No VM can give more."""
    WITHDRAWN = "withdrawn"
    """The operator no longer waits for the answer, or wants no reserve any more."""
    HALTED = "halted"
    """balloond ends."""
    SWITCHED_OFF = "switched-off"
    """Low memory is switched off: nothing is taken, however little is available."""


class Share(NamedTuple):
    """A VM's share of a reclaim.

    Attributes:
        vm: the VM.
        asked_bytes: how much it was asked for.
        came_bytes: how much of it is in its balloon, as its driver reports.
        objection: why it was asked for no more in the last round; None: nothing was against
            asking.
        gone: whether the VM has gone meanwhile, with all of its memory.
    """

    vm: VmId
    asked_bytes: int
    came_bytes: int
    objection: Reason | None = None
    gone: bool = False


class Decision(NamedTuple):
    """The reading of one step, its result, and why.

    Attributes:
        reading: The reading; None where the event has none or the figures are unknown.
        needed_mib: What had to be available for a step down; None where no step down was tried.
        aim_mib: How much ``Adaptive`` wants to be available; None: it did not decide.
        before_bytes: The target before the step, where both targets may have the same level; None:
            it was the target of ``level_before``.
    """

    reason: Reason
    level_before: int
    level: int
    steps: int
    target_bytes: int
    reading: Reading | None = None
    needed_mib: int | None = None
    aim_mib: int | None = None
    before_bytes: int | None = None


class PolicyStatistics(NamedTuple):
    """Counters since this object was made."""

    low_memory_events: int = 0
    steps_up: int = 0
    steps_down: int = 0
    releases_refused: int = 0
    releases_unknown: int = 0
