"""The demonstration's script: how much memory there is, and what the host's load does when.

Pure. Every number follows from the VM's size and the balloon policy's speed, so that any VM shows
the same: the load pushes the host below its margin five times, for one balloon step each, then
ends.
"""

import math
from dataclasses import dataclass
from enum import Enum
from typing import assert_never

from balloon_daemon.errors import ConfigError
from balloon_daemon.sizing.balloon_policy import PolicySettings, max_balloon_bytes
from balloon_daemon.units import GIB, MIB, PAGE_SIZE, format_size

MIN_VM_BYTES = 500 * MIB
MAX_VM_BYTES = 16 * GIB
MIN_SPEED = 10.0
MAX_SPEED = 50.0
DEFAULT_SPEED = 15.0
"""At this speed a balloon at its maximum is empty within a minute, even on a slow machine."""


MARGIN_BYTES = 400 * MIB
BASE_LOAD_BYTES = 400 * MIB
SPARE_BYTES = 160 * MIB
"""The calm host's available memory beyond what a step down of the balloon needs."""

MAX_CACHE_BYTES = 640 * MIB
PINNED_BYTES = 64 * MIB
"""The most page cache of the guest, and its pinned memory. The demonstration really allocates
both, and some 200 MiB for four Python processes: together less than 1 GiB."""

LEVELS = 5
"""How many steps up the load causes."""

CACHE_SHARE = 0.5
"""Half of the memory that the guest gives up first is in use; the rest was never touched."""


class Phase(Enum):
    """The load's phases; the values are the charts' labels."""

    CALM = "calm"
    GROWS = "another program starts"
    PUSHES = "it needs more and more"
    HOLDS = "it works"
    LEAVES = "it ends"
    RETURNS = "the guest gets its memory back"


@dataclass(frozen=True, slots=True)
class Story:
    """One demonstration, planned.

    Attributes:
        vm_bytes: the guest's memory.
        speed: how many times faster than ChromeOS's the balloon policy runs.
        step_bytes: by how much the balloon grows at each level.
        max_balloon_bytes: all sixteen levels.
        cache_bytes: guest memory that has content and may be given up.
        share: of the memory that the guest gives up first, the part that has content.
        pinned_bytes: guest memory that the guest never gives up.
        budget_bytes: all memory of the pretended host.
        peak_load_bytes: the load's maximum, without the host's own memory.
    """

    vm_bytes: int
    speed: float
    step_bytes: int
    max_balloon_bytes: int
    cache_bytes: int
    share: float
    pinned_bytes: int
    budget_bytes: int
    peak_load_bytes: int

    @property
    def approach_bytes(self) -> int:
        """The load that brings the host to just above its margin, with no balloon."""
        return 2 * self.step_bytes + SPARE_BYTES - 40 * MIB

    def load_bytes(self, at_s: float) -> int:
        """What the host's other programs hold, in bytes."""
        phase, share = self.phase(at_s)
        match phase:
            case Phase.CALM | Phase.RETURNS:
                extra = 0.0
            case Phase.GROWS:
                extra = self.approach_bytes * _smooth(share)
            case Phase.PUSHES:
                extra = self.approach_bytes + share * (self.peak_load_bytes - self.approach_bytes)
            case Phase.HOLDS:
                extra = self.peak_load_bytes
            case Phase.LEAVES:
                extra = self.peak_load_bytes * (1 - _smooth(share))
            case unreachable:
                assert_never(unreachable)
        return BASE_LOAD_BYTES + int(extra)

    def phase(self, at_s: float) -> tuple[Phase, float]:
        """The phase at a time, and how much of it has passed, from 0 to 1."""
        for phase, start_s, end_s in self.timetable():
            if at_s < end_s:
                return phase, max(0.0, (at_s - start_s) / (end_s - start_s))
        return Phase.RETURNS, 0.0

    def timetable(self) -> list[tuple[Phase, float, float]]:
        """Every phase with its start and end, in seconds; the last has no end."""
        # With a balloon policy faster than the demonstration's default, the load changes faster
        # too. With a slower policy, the load does not change more slowly.
        pace = min(1.0, DEFAULT_SPEED / self.speed)
        table = []
        start_s = 0.0
        for phase, length_s in _LENGTHS_S.items():
            table.append((phase, start_s, start_s + length_s * pace))
            start_s += length_s * pace
        return table

    def start_s(self, phase: Phase) -> float:
        """When a phase begins, in seconds."""
        return next(start for which, start, _ in self.timetable() if which is phase)

    @property
    def expected_s(self) -> float:
        """How long the demonstration will take, in seconds, unless something goes wrong."""
        policy = PolicySettings().faster(self.speed)
        first_s = policy.release_after_s + policy.release_after_jitter_s
        return self.start_s(Phase.HOLDS) + first_s + (LEVELS - 1) * policy.release_every_s + 1.0


_LENGTHS_S = {
    Phase.CALM: 2.5,
    Phase.GROWS: 3.0,
    Phase.PUSHES: 5.0,
    Phase.HOLDS: 3.0,
    Phase.LEAVES: 1.5,
    Phase.RETURNS: math.inf,
}


def _smooth(share: float) -> float:
    """Eases in and out: slow at the start and at the end."""
    return share * share * (3 - 2 * share)


def plan(vm_bytes: int, speed: float) -> Story:
    """Plans a demonstration.

    Args:
        vm_bytes: the guest's memory.
        speed: how many times faster than ChromeOS's the balloon policy runs.

    Raises:
        ConfigError: a VM or a speed with which there would be nothing to see.
    """
    if not MIN_VM_BYTES <= vm_bytes <= MAX_VM_BYTES or vm_bytes % PAGE_SIZE:
        raise ConfigError(
            f"a VM of {format_size(vm_bytes)}: the demo takes whole pages from "
            f"{format_size(MIN_VM_BYTES)} (below it there is no balloon) to "
            f"{format_size(MAX_VM_BYTES)}"
        )
    if not MIN_SPEED <= speed <= MAX_SPEED:
        raise ConfigError(
            f"speed {speed:g}: the demo takes {MIN_SPEED:g} (slower would last over a minute) "
            f"to {MAX_SPEED:g}"
        )
    maximum = max_balloon_bytes(vm_bytes)
    step = maximum // PolicySettings().steps
    # The load causes LEVELS levels of the balloon. The guest's cache is spread over the memory of
    # a third more levels, and fills at most CACHE_SHARE of it; the rest was never touched.
    levels = LEVELS * 4 / 3
    cache = int(min(MAX_CACHE_BYTES, CACHE_SHARE * levels * step)) // PAGE_SIZE * PAGE_SIZE
    pinned = min(PINNED_BYTES, cache // 4) // PAGE_SIZE * PAGE_SIZE
    freed_a_level = cache / levels
    calm_bytes = MARGIN_BYTES + 2 * step + SPARE_BYTES
    return Story(
        vm_bytes=vm_bytes,
        speed=speed,
        step_bytes=step,
        max_balloon_bytes=maximum,
        cache_bytes=cache,
        share=cache / (levels * step),
        pinned_bytes=pinned,
        budget_bytes=calm_bytes + BASE_LOAD_BYTES + cache + pinned,
        # At its peak the load leaves the host (LEVELS - 0.25) balloon levels short of the margin:
        # LEVELS - 1 levels are too few, LEVELS are enough.
        peak_load_bytes=int(calm_bytes - MARGIN_BYTES + (LEVELS - 0.25) * freed_a_level),
    )


def introduction(story: Story) -> str:
    """The introduction to the demonstration, for a person."""
    return (
        f"A host of {format_size(story.budget_bytes)} runs a VM of "
        f"{format_size(story.vm_bytes)} and other programs. When less than "
        f"{format_size(MARGIN_BYTES)} are available, balloond takes memory back from the VM, "
        f"{format_size(story.step_bytes)} a step. Its timers run {story.speed:g} times faster "
        f"than ChromeOS's."
    )
