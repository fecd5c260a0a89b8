"""What a policy did to a real host and its guests, in the simulator's scores. Pure."""

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from balloon_daemon.ctl.simulate.live_guest import IN_NEED, LOSES
from balloon_daemon.ctl.simulate.scores import Fared, Scorer, Scores
from balloon_daemon.units import MIB, VmId

WAITED = 0.05
REFAULTS_S = 64.0
"""What a guest loses counts if tasks waited for memory for more than this share of the time, by
/proc/pressure/memory, or if it read so many pages a second again that its page cache had dropped:
else it is the busy host that keeps the guest from its work. /proc/pressure/memory alone misses
most of the waits for page cache (``tests/data/recordings/README.md``)."""


@dataclass(frozen=True, slots=True)
class Moment:
    """The host at one moment.

    Attributes:
        at_s: seconds since the run's beginning.
        available_mib: below 0: so much is missing.
        balloons_mib: the balloons' sizes by VM.
    """

    at_s: float
    available_mib: int
    balloons_mib: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Spell:
    """What a guest did between two looks at it.

    Attributes:
        vm: which guest.
        at_s: the first look.
        to_s: the second one.
        wished: how many operations its load wished to do.
        done: how many it did.
        waited: the share of the time in which tasks waited for memory.
        refaults: how many pages it read or swapped in again.
        spare_mib: how much more was available at the end, by its own kernel, than a guest has to
            have left.
        oom_kills: how many processes its kernel killed.
    """

    vm: str
    at_s: float
    to_s: float
    wished: float
    done: int
    waited: float
    refaults: int
    spare_mib: int
    oom_kills: int

    @property
    def seconds(self) -> float:
        """How long the time was."""
        return self.to_s - self.at_s

    @property
    def stall(self) -> float:
        """The share of its time that its load lost by waiting for memory."""
        lacks_memory = self.waited >= WAITED or self.refaults >= REFAULTS_S * self.seconds
        if self.wished <= 0 or not lacks_memory:
            return 0.0
        return max(0.0, 1 - self.done / self.wished)


@dataclass(frozen=True, slots=True)
class Change:
    """A decision of balloond that changed a VM's target."""

    vm: str
    at_s: float
    target_bytes: int


@dataclass(slots=True)
class Course:
    """All that was seen of one run."""

    margin_mib: int
    moments: list[Moment] = field(default_factory=list)
    spells: list[Spell] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)


def scores(course: Course) -> Scores:
    """Sums a run up, by the simulator's own rules."""
    scorer = Scorer()
    vms: dict[str, VmId] = {}

    def vm_id(name: str) -> VmId:
        return vms.setdefault(name, VmId(len(vms) + 1, name))

    for moment, following in pairwise(course.moments):
        seconds = following.at_s - moment.at_s
        margin_mib = course.margin_mib
        scorer.host(moment.available_mib, following.available_mib, margin_mib, seconds)
        for name, balloon_mib in moment.balloons_mib.items():
            balloon_bytes = balloon_mib * MIB
            fared = Fared(balloon_bytes, 0.0, in_need=False, is_short=False)
            scorer.guest(vm_id(name), fared, moment.at_s, seconds)
    # A spell is in order by its beginning: a give-back in the midst of a need answers that need.
    both: list[Change | Spell] = [*course.changes, *course.spells]
    order = sorted(both, key=lambda each: each.at_s)
    for each in order:
        vm = vm_id(each.vm)
        if isinstance(each, Change):
            balloon_bytes = _balloon_mib(course, each.vm, each.at_s) * MIB
            scorer.told(vm, each.target_bytes, balloon_bytes, each.at_s)
        else:
            balloons_mib = [_balloon_mib(course, each.vm, at) for at in (each.at_s, each.to_s)]
            # What it had before it got memory back, if it did.
            spare_mib = each.spare_mib - max(0, balloons_mib[0] - balloons_mib[1])
            is_short = each.stall > LOSES or spare_mib < 0
            fared = Fared(0, each.stall, each.stall > IN_NEED, is_short)
            scorer.guest(vm, fared, each.to_s, each.seconds)
            scorer.scores.oom_kills += each.oom_kills
    return scorer.scores


def work_done(spells: Iterable[Spell]) -> float:
    """How much of what guests wished to do they did: 1 is all."""
    every = list(spells)
    wished = sum(spell.wished for spell in every)
    return sum(spell.done for spell in every) / wished if wished else 1.0


def _balloon_mib(course: Course, vm: str, at_s: float) -> int:
    """How large a balloon was at a time."""
    number = bisect_right(course.moments, at_s, key=lambda moment: moment.at_s)
    return course.moments[max(0, number - 1)].balloons_mib.get(vm, 0)
