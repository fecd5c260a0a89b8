"""What the balloon policy saw, what it decided and why: one record a step, for logs and metrics.

Pure: values only. ``balloon_policy`` makes them, the controller writes them down.
"""

from enum import Enum
from typing import NamedTuple

from balloon_daemon.units import format_size


class Reading(NamedTuple):
    """What a low-memory source saw at one moment, in MiB.

    Attributes:
        within: The limit, smaller than the host, below which this is available; "": the host.
    """

    available_mib: int
    margin_mib: int
    within: str = ""

    @property
    def is_low(self) -> bool:
        """Whether this is low memory: less available than the margin."""
        return self.available_mib < self.margin_mib


class NeverLow(NamedTuple):
    """What a source that is switched off says: nothing is low memory, whatever is available.

    Attributes:
        why: What switched it off.
    """

    why: str


class Reason(Enum):
    """Why a step ended as it did: the word for a log line or a metric's label."""

    LOW_MEMORY = "low-memory"
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


_WHY = {
    Reason.LOW_MEMORY: "low memory",
    Reason.AT_MAXIMUM: "low memory, but the balloon is at its maximum",
    Reason.NO_BALLOON: "low memory, but this VM can have no balloon",
    Reason.RECHECK: "time to look again",
    Reason.MEMORY_BACK: "memory is back",
    Reason.NOT_ENOUGH_BACK: "not enough memory is back yet",
    Reason.UNKNOWN: "available memory is unknown",
    Reason.SWITCHED_OFF: "low memory is switched off",
    Reason.ALL_RETURNED: "all memory was given back",
    Reason.RESTORED: "taken over from an earlier process",
    Reason.RESIZED: "the VM's memory has changed",
    Reason.ADOPTED: "the guest's balloon was found out",
    Reason.FRUITLESS: "low memory, but what this VM gives does not come back to the host",
    Reason.NO_ROOM: "low memory, but the VM's tmpfs has no room to give this back later",
}


class Decision(NamedTuple):
    """What one step saw, what it decided, and why.

    Attributes:
        reading: What was seen; None where the event carries none or there were no figures.
        needed_mib: What had to be available for a step down; None where that was not asked.
    """

    reason: Reason
    level_before: int
    level: int
    steps: int
    target_bytes: int
    reading: Reading | None = None
    needed_mib: int | None = None

    def describe(self) -> str:
        """One line for people: seen, why, decided."""
        line = _WHY[self.reason]
        if self.reading is not None:
            needed = "" if self.needed_mib is None else f", {self.needed_mib:,} MiB needed"
            within = f" within {self.reading.within}" if self.reading.within else ""
            line += (
                f" ({self.reading.available_mib:,} MiB available{within}, "
                f"margin {self.reading.margin_mib:,} MiB{needed})"
            )
        size = format_size(self.target_bytes)
        if self.level == self.level_before:
            return f"{line}: balloon stays at level {self.level}/{self.steps}, {size}"
        verb = "grows" if self.level > self.level_before else "shrinks"
        return f"{line}: balloon {verb} to level {self.level}/{self.steps}, {size}"


class PolicyStatistics(NamedTuple):
    """Counters since this object was made."""

    low_memory_events: int = 0
    steps_up: int = 0
    steps_down: int = 0
    releases_refused: int = 0
    releases_unknown: int = 0
