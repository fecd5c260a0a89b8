"""Adds up what a sizing policy did: for how long memory was low, and how much memory was taken.

Pure.
"""

from collections import defaultdict
from dataclasses import dataclass, field

from balloon_daemon.sizing.decision import InNeed, Reading, Reason, Stalled
from balloon_daemon.sizing.host_events import HostStep, Seen
from balloon_daemon.units import VmId


@dataclass(slots=True)
class Sums:
    """The sums, for all VMs together.

    Attributes:
        seconds: how long the time was.
        low_s: for how long less was available than the margin.
        unknown_s: for how long the host's figures were unknown, or low memory was switched off.
        most_missing_mib: the most by which available memory was below the margin.
        byte_seconds: the balloons' sizes, each times the seconds for which it had that size.
        peak_bytes: the greatest sum of all balloons' sizes at one time.
        steps_up: decisions that raised a VM's level.
        steps_down: decisions that lowered a VM's level.
        reversals: steps of a VM in the direction opposite to its step before.
        in_need: how often a guest was found in need.
        stalled: how often a balloon was found stalled.
    """

    seconds: float = 0.0
    low_s: float = 0.0
    unknown_s: float = 0.0
    most_missing_mib: int = 0
    byte_seconds: float = 0.0
    peak_bytes: int = 0
    steps_up: int = 0
    steps_down: int = 0
    reversals: int = 0
    in_need: int = 0
    stalled: int = 0


@dataclass(slots=True)
class Tally:
    """Adds up readings, balloons' sizes and decisions over time.

    Attributes:
        sums: the sums so far.
        balloons: the size of each VM's balloon.
    """

    sums: Sums = field(default_factory=Sums)
    balloons: defaultdict[VmId, int] = field(default_factory=lambda: defaultdict(int))
    _total: int = 0
    _at_s: float | None = None
    _seen: Seen = None
    _went_up: dict[VmId, bool] = field(default_factory=dict)

    def advance(self, at_s: float) -> None:
        """Moves the clock on to ``at_s``: the last reading and the last sizes are counted for the
        time until then."""
        if self._at_s is None:
            self._at_s = at_s
        passed_s = max(0.0, at_s - self._at_s)
        self._at_s += passed_s
        sums, seen = self.sums, self._seen
        sums.seconds += passed_s
        sums.byte_seconds += passed_s * self._total
        if not isinstance(seen, Reading):
            sums.unknown_s += passed_s
        elif seen.is_low:
            sums.low_s += passed_s

    def saw(self, seen: Seen) -> None:
        """Notes a reading of the host."""
        self._seen = seen
        if isinstance(seen, Reading):
            missing_mib = seen.margin_mib - seen.available_mib
            self.sums.most_missing_mib = max(self.sums.most_missing_mib, missing_mib)

    def moved(self, vm: VmId, balloon_bytes: int) -> None:
        """Notes the size of a VM's balloon; called with 0 for a VM that is gone."""
        self._total += balloon_bytes - self.balloons[vm]
        self.balloons[vm] = balloon_bytes
        self.sums.peak_bytes = max(self.sums.peak_bytes, self._total)

    def stepped(self, step: HostStep) -> None:
        """Notes what a step has decided and found."""
        sums = self.sums
        for vm, decision, _ in step.decisions:
            # An adopted balloon was there already: its guest is asked for nothing.
            if decision.level == decision.level_before or decision.reason is Reason.ADOPTED:
                continue
            up = decision.level > decision.level_before
            sums.steps_up += up
            sums.steps_down += not up
            sums.reversals += self._went_up.get(vm, up) is not up
            self._went_up[vm] = up
        for _, finding in step.findings:
            sums.in_need += isinstance(finding, InNeed)
            sums.stalled += isinstance(finding, Stalled)
