"""Readings and decisions of the balloon policy: one record for each step, for logs and metrics.

Pure: values only. ``balloon_policy`` makes them, the controller publishes them.
"""

from enum import Enum
from typing import NamedTuple


class Reading(NamedTuple):
    """The reading of a low-memory source at one moment, in MiB.

    Attributes:
        within: The file of the cgroup limit to which the reading applies; "": the whole host.
    """

    available_mib: int
    margin_mib: int
    within: str = ""

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
    """Why a step ended as it did; the value is the word for a log line or a metric's label."""

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
    LOWER_FIRST = "lower-priority-first"


class Decision(NamedTuple):
    """The reading of one step, its result, and why.

    Attributes:
        reading: The reading; None where the event has none or the figures are unknown.
        needed_mib: What had to be available for a step down; None where no step down was tried.
    """

    reason: Reason
    level_before: int
    level: int
    steps: int
    target_bytes: int
    reading: Reading | None = None
    needed_mib: int | None = None


class PolicyStatistics(NamedTuple):
    """Counters since this object was made."""

    low_memory_events: int = 0
    steps_up: int = 0
    steps_down: int = 0
    releases_refused: int = 0
    releases_unknown: int = 0
