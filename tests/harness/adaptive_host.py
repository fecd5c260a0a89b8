"""A host whose guests have balloons that move as fast as they can, and say what they like.

The host's available memory is what programs leave, and what is in balloons: so what a policy does
comes back to it, unless a test says what is to be read.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from balloon_daemon.sizing.balloon_policy import PolicySettings
from balloon_daemon.sizing.decision import InNeed, Reading, Reason
from balloon_daemon.sizing.host_events import (
    Added,
    Event,
    HostStep,
    Looked,
    Moved,
    Sampled,
    Seen,
    VmDecision,
    VmFinding,
    Woke,
)
from balloon_daemon.sizing.host_policy import HostPolicy
from balloon_daemon.sizing.need import Figures
from balloon_daemon.sizing.terms import Terms
from balloon_daemon.sizing.vm_settings import Profile, VmSettings
from balloon_daemon.units import GIB, MIB, VmId

ADAPTIVE = Terms(VmSettings(profile=Profile.ADAPTIVE))
MARGIN_MIB = 400
TICK_S = 1.0


@dataclass
class Guest:
    """A guest.

    Attributes:
        vm_mem_bytes: its size.
        terms: its settings and abilities.
        rate: how fast its balloon moves, in bytes a second.
        free_mib, cache_mib: what it has with an empty balloon.
        says: (time, its true figures) -> its statistics; None: it sends none.
    """

    vm_mem_bytes: int = GIB
    terms: Terms = ADAPTIVE
    rate: int = 256 * MIB
    free_mib: int = 300
    cache_mib: int = 300
    says: Callable[[float, Figures], Figures | None] = lambda at_s, figures: figures
    balloon_bytes: int = 0

    def figures(self, at_s: float) -> Figures:
        """Its true figures: a balloon takes free memory first, then page cache."""
        free = self.free_mib * MIB - self.balloon_bytes
        cache = self.cache_mib * MIB + min(0, free)
        return Figures(at_s, max(0, free) + max(0, cache), max(0, free), 0, 0, 0, 0)


def well(_at_s: float, figures: Figures) -> Figures:
    """Statistics of a guest that has plenty, whatever is taken from it."""
    return figures._replace(available_bytes=64 * GIB, free_bytes=64 * GIB)


@dataclass
class Turn:
    """A target that a VM was sent, other than the one before.

    Attributes:
        vm: the VM.
        at_s: when.
        up: whether it is larger.
        in_need: whether its guest was found in need in the same step.
    """

    vm: VmId
    at_s: float
    up: bool
    in_need: bool


@dataclass
class AdaptiveHost:
    """The host.

    Attributes:
        guests: its VMs.
        bare_mib: what would be available without balloons.
        reads: what is read instead; None: what is available.
        turns: all changes of targets.
        steps: all that the policy was told, when, and what came of it.
    """

    guests: Mapping[VmId, Guest]
    bare_mib: float = 4000
    reads: Seen = None
    draw: Callable[[], float] = lambda: 0.0
    now_s: float = 1000.0
    turns: list[Turn] = field(default_factory=list)
    decisions: list[VmDecision] = field(default_factory=list)
    findings: list[VmFinding] = field(default_factory=list)
    steps: list[tuple[float, Event, HostStep]] = field(default_factory=list)
    low_s: float = 0.0

    def __post_init__(self) -> None:
        self.policy = HostPolicy(PolicySettings(), self.draw, lambda _vm, _level: None)
        self.wake_at_s: float | None = None
        self.listens = False
        for vm, guest in self.guests.items():
            self.step(Added(vm, guest.vm_mem_bytes, guest.balloon_bytes, guest.terms))

    @property
    def seen(self) -> Seen:
        """What is read now."""
        if self.reads is not None:
            return self.reads
        balloons = sum(guest.balloon_bytes for guest in self.guests.values()) // MIB
        return Reading(max(0, int(self.bare_mib) + balloons), MARGIN_MIB)

    @property
    def told_bytes(self) -> int:
        """The sum of all targets."""
        return sum(self.policy.target_bytes(vm) for vm in self.guests)

    @property
    def most_bytes(self) -> int:
        """The sum of all maximums."""
        return sum(self.policy.policy(vm).max_bytes for vm in self.guests)

    def step(self, event: Event) -> HostStep:
        before = {vm: self.policy.target_bytes(vm) for vm in self.guests if self._governs(vm)}
        step = self.policy.step(event, self.now_s)
        needy = {vm for vm, finding in step.findings if isinstance(finding, InNeed)}
        for vm, target_bytes in step.targets:
            assert 0 <= target_bytes <= self.policy.policy(vm).max_bytes
            if target_bytes != before.get(vm, target_bytes):
                up = target_bytes > before[vm]
                self.turns.append(Turn(vm, self.now_s, up, vm in needy))
            before[vm] = target_bytes
        self.steps.append((self.now_s, event, step))
        self.decisions += step.decisions
        self.findings += step.findings
        self.wake_at_s, self.listens = step.wake_at_s, step.listen
        assert step.stuck == ()
        return step

    def tick(self, seconds: float = TICK_S) -> None:
        """Lets time go by: balloons move, guests report, and the host is read when it is due."""
        end_s = self.now_s + seconds
        while self.wake_at_s is not None and self.wake_at_s < end_s:
            self._pass(max(0.0, self.wake_at_s - self.now_s))
            self.step(Woke(self.seen))
        self._pass(end_s - self.now_s)
        for vm, guest in self.guests.items():
            if self.policy.guard(vm) is None:
                continue
            figures = guest.says(self.now_s, guest.figures(self.now_s))
            if figures is not None:
                self.step(Sampled(vm, figures))
        if self.listens:
            self.step(Looked(self.seen))

    def live(self, seconds: int) -> None:
        """Lets many seconds go by."""
        for _ in range(seconds):
            self.tick()

    def reasons(self, vm: VmId) -> list[Reason]:
        """The reasons of all decisions about a VM."""
        return [each.decision.reason for each in self.decisions if each.vm == vm]

    def _governs(self, vm: VmId) -> bool:
        return self.policy.governs(vm)

    def _pass(self, seconds: float) -> None:
        seen = self.seen
        self.low_s += seconds * (isinstance(seen, Reading) and seen.is_low)
        self.now_s += seconds
        for vm, guest in self.guests.items():
            target, way = self.policy.target_bytes(vm), int(guest.rate * seconds)
            before = guest.balloon_bytes
            if target > before:
                guest.balloon_bytes = min(target, before + way)
            else:
                guest.balloon_bytes = max(target, before - way)
            if guest.balloon_bytes != before:
                if self.policy.guard(vm) is None:
                    self.policy.note_actual(vm, guest.balloon_bytes)
                else:
                    self.step(Moved(vm, guest.balloon_bytes))


def turned_within(turns: list[Turn], seconds: float) -> list[tuple[Turn, Turn]]:
    """The changes of a VM's target that went the other way than its change before, within a time,
    without its guest having been found in need."""
    last: dict[VmId, Turn] = {}
    found = []
    for turn in turns:
        before = last.get(turn.vm)
        turned = before is not None and before.up is not turn.up and not turn.in_need
        if before is not None and turned and turn.at_s - before.at_s < seconds:
            found.append((before, turn))
        last[turn.vm] = turn
    return found
