"""Whatever guests report and however time jumps: each wake of the host's policy ends.

A wake fires deadlines until none is due, so a deadline that does not move when it fires would hold
the whole daemon for ever. What makes one stand still is rare, such as a sum of times that is
rounded the other way, so stories are drawn that keep balloons at the rules' own limits.
"""

import math
from collections import Counter
from random import Random

import pytest

from balloon_daemon.sizing.balloon_policy import PolicySettings
from balloon_daemon.sizing.decision import NeverLow, Reading
from balloon_daemon.sizing.host_events import (
    Added,
    Event,
    Looked,
    Measured,
    Moved,
    Ran,
    Removed,
    Resized,
    Sampled,
    Seen,
    Woke,
)
from balloon_daemon.sizing.host_policy import MOST_AT_ONCE, HostPolicy
from balloon_daemon.sizing.need import Figures
from balloon_daemon.sizing.terms import Terms
from balloon_daemon.sizing.vm_settings import SEED, Profile, VmSettings
from balloon_daemon.units import GIB, MIB, VmId

VMS = [VmId(number, f"vm{number}") for number in range(1, 4)]
WAKES = 12
"""How often it wakes on time before it wakes late, as after a host's sleep."""

LOW, NEAR = Reading(10, 400), Reading(500, 400)
SEEN: list[Seen] = [LOW, NEAR, NEAR, Reading(9000, 400), NeverLow("off"), None]
SIZES = [0, 512 * MIB, GIB, GIB, GIB, 3 * GIB]
SHORT_MIB = [0, 0, 0, 1, 1, 2, 16, 17, 31]
"""How far a balloon is from its target, at the rules' own limits."""

WELL = Figures(0.0, 600 * MIB, 300 * MIB, 0, 0, 0, 0)


class Story:
    """A host's policy, its clock, and what is drawn to happen; checks each step.

    Args:
        seed: what is drawn.
    """

    def __init__(self, seed: int) -> None:
        self.draw = Random(seed)
        self.host = HostPolicy(PolicySettings(), self.draw.random, lambda _vm, _level: None)
        # A clock has all bits in use: sums with such numbers are rounded.
        self.now_s = self.draw.random() * 10 ** self.draw.randint(0, 7)
        self.seen: Seen = LOW
        self.actual: dict[VmId, int] = {}
        self.wake_at_s: float | None = None

    def step(self, event: Event) -> None:
        step = self.host.step(event, self.now_s)
        assert step.stuck == ()
        decided = Counter(vm for vm, _, _ in step.decisions)
        assert all(count <= 2 * MOST_AT_ONCE for count in decided.values())
        self.wake_at_s = step.wake_at_s
        if step.wake_at_s is not None:
            self.nothing_is_missed(step.wake_at_s + step.late_s)

    def nothing_is_missed(self, latest_s: float) -> None:
        """No deadline that could change a target is due before the latest time to wake."""
        for vm in filter(self.host.governs, VMS):
            policy, guard = self.host.policy(vm), self.host.guard(vm)
            _, recheck_s, release_s = policy.state()
            due_s = [] if guard is None else [guard.check_at_s]
            due_s += [] if release_s is None else [release_s]
            if recheck_s is not None:
                rises = policy.max_bytes > 0 and policy.level < policy.settings.steps
                most_s = policy.settings.recheck_jitter_s / 2
                due_s.append(recheck_s if rises or guard is not None else recheck_s + most_s)
            assert latest_s <= min(due_s, default=math.inf) + 1e-6

    def wake(self, seen: Seen) -> None:
        self.step(Woke(seen))
        assert self.wake_at_s is None or self.wake_at_s > self.now_s

    def live(self, seconds: float, seen: Seen) -> None:
        """Lets time go by; wakes at the very times that were asked for, and at last late."""
        end_s = self.now_s + seconds
        for _ in range(WAKES):
            if self.wake_at_s is None or self.wake_at_s > end_s:
                break
            self.now_s = max(self.now_s, self.wake_at_s)
            self.wake(seen)
        self.now_s = end_s
        self.wake(seen)

    def go_on(self) -> None:
        """Something happens to each VM, the source is read, and time goes by."""
        draw = self.draw
        for vm in VMS:
            self.step(self.event(vm) if self.host.governs(vm) else self.added(vm))
        if draw.random() < 0.4:
            self.seen = draw.choice(SEEN)
        self.step(Looked(self.seen))
        longest_s = draw.choices([3.0, 9.0, 100.0, 1e4], [60, 30, 9, 1])[0]
        self.live(draw.choice([longest_s * draw.random(), 0.0, 1.0, 4.0]), self.seen)

    def added(self, vm: VmId) -> Event:
        """The VM comes."""
        draw = self.draw
        profile = draw.choice([SEED, *[VmSettings(profile=Profile.CAREFUL)] * 3])
        terms = Terms(profile, sends_stats=draw.random() < 0.7, deflates_on_oom=True)
        return Added(vm, draw.choice(SIZES), draw.choice([0, 0, 100 * MIB]), terms)

    def event(self, vm: VmId) -> Event:
        """What happens to a VM that is governed."""
        draw = self.draw
        anything = draw.randrange(2 * GIB)
        target = self.host.target_bytes(vm)
        short = max(0, target - draw.choice(SHORT_MIB) * MIB)
        if (actual := self.actual.get(vm, 0)) < target:
            short = max(short, actual)  # It grows.
        events: dict[Event, int] = {
            Moved(vm, short): 100,
            Sampled(vm, WELL._replace(at_s=self.now_s)): 20,
            Sampled(vm, self.figures()): 1,
            Ran(vm, draw.random() < 0.8): 2,
            Measured(vm, anything): 1,
            Resized(vm, draw.choice(SIZES)): 1,
            Removed(vm): 1,
        }
        event = draw.choices(list(events), list(events.values()))[0]
        if isinstance(event, Moved):
            event = event if draw.random() < 0.98 else Moved(vm, anything)
            self.actual[vm] = event.balloon_bytes
        return event

    def figures(self) -> Figures:
        """Statistics of any time, with any numbers."""
        numbers = [self.draw.choice([None, 0, self.draw.randrange(1 << 64)]) for _ in range(6)]
        return Figures(self.now_s + self.draw.uniform(-40, 40), *numbers)


@pytest.mark.parametrize("seed", range(0, 1000, 100))
def test_each_wake_ends_and_asks_for_the_next_one_in_the_future(seed: int) -> None:
    for each in range(seed, seed + 100):
        story = Story(each)
        for _ in range(20):
            story.go_on()
