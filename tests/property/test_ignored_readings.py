"""A reading that the host's policy ignores would have changed nothing, now or later."""

from itertools import cycle
from typing import NamedTuple

from hypothesis import event, given, settings
from hypothesis import strategies as st

from balloon_daemon.sizing.balloon_policy import PolicySettings
from balloon_daemon.sizing.decision import NeverLow, Reading
from balloon_daemon.sizing.host_events import (
    Added,
    Event,
    HostStep,
    Looked,
    Moved,
    Paused,
    Removed,
    Reserved,
    Sampled,
    Seen,
    SettingsChanged,
    Wanted,
    Woke,
)
from balloon_daemon.sizing.need import Figures
from balloon_daemon.sizing.resumable import ResumablePolicy
from balloon_daemon.sizing.terms import Terms
from balloon_daemon.sizing.vm_settings import Profile, VmSettings
from balloon_daemon.units import GIB, MIB, VmId

VMS = [VmId(number, f"vm{number}") for number in range(1, 4)]
MARGIN_MIB = 400
# Around the multiples of the margin at which anything begins or ends, and far above.
AVAILABLE = st.one_of(
    st.sampled_from([0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 5.0]).flatmap(
        lambda margins: st.integers(-1, 1).map(lambda off: int(margins * MARGIN_MIB) + off)
    ),
    st.integers(0, 20 * MARGIN_MIB),
)
READINGS = st.one_of(
    st.none(),
    st.just(NeverLow("off")),
    st.builds(Reading, AVAILABLE, st.just(MARGIN_MIB)),
    st.builds(Reading, st.integers(3, 9).map(MARGIN_MIB.__mul__), st.just(MARGIN_MIB)),
    st.builds(Reading, AVAILABLE, st.sampled_from([0, 1, 4 * MARGIN_MIB]), st.just("limit")),
)
SETTINGS = st.builds(VmSettings, priority=st.integers(0, 1), profile=st.sampled_from(Profile))
SIZES = st.sampled_from([0, 600 * MIB, GIB, 3 * GIB])
FIGURES = st.builds(
    Figures, st.just(0.0), st.sampled_from([50 * MIB, GIB]), st.just(0), st.just(0), st.just(0)
)
EVENTS = st.one_of(
    st.builds(Added, st.sampled_from(VMS[1:]), SIZES, SIZES, st.builds(Terms, SETTINGS)),
    st.builds(Added, st.just(VMS[2]), SIZES, SIZES, st.builds(Terms, SETTINGS)),
    st.builds(SettingsChanged, st.sampled_from(VMS), SETTINGS),
    st.builds(Removed, st.sampled_from(VMS)),
    st.builds(Moved, st.sampled_from(VMS), SIZES),
    st.builds(Sampled, st.sampled_from(VMS), FIGURES),
    st.builds(Paused, st.just(()), st.just(5.0)),
    st.builds(Wanted, st.just(1), st.just(()), SIZES, st.just(3.0), st.just(5.0)),
    st.builds(Reserved, st.just(2), SIZES, st.just(3.0), st.just(9.0)),
)


class Act(NamedTuple):
    """Something happens, and then there are some seconds with one reading in each."""

    event: Event | None
    readings: list[Seen]


ACTS = st.lists(
    st.builds(Act, st.none() | EVENTS, st.lists(READINGS, min_size=1, max_size=6)), min_size=3
)


class Both:
    """Two policies that see the same: one is told each reading, the other those that it wants."""

    def __init__(self, draws: list[float]) -> None:
        ours, theirs = cycle(draws), cycle(draws)
        settings = PolicySettings()
        self.told = ResumablePolicy(settings, lambda: next(ours), lambda _vm, _level: None)
        self.asked = ResumablePolicy(settings, lambda: next(theirs), lambda _vm, _level: None)
        self.now_s = 1000.0
        self.before = HostStep((), (), None, False)
        """What the step before has left: the controller's timer, and whether it listens."""

    def step(self, what: Event) -> None:
        expected = self.told.step(what, self.now_s)
        if isinstance(what, Looked) and self.asked.ignores(what.seen):
            event("ignored")
            assert expected == self.before
        else:
            assert self.asked.step(what, self.now_s) == expected
        assert self.asked.found() == self.told.found()
        self.before = HostStep((), (), expected.wake_at_s, expected.listen, late_s=expected.late_s)

    def look(self, seen: Seen) -> None:
        """A second passes; deadlines come first, as in the controller."""
        until_s = self.now_s + 1.0
        for _ in range(50):
            if (wake_at_s := self.before.wake_at_s) is None or wake_at_s > until_s:
                break
            self.now_s = max(self.now_s, wake_at_s)
            self.step(Woke(seen))
        self.now_s = until_s
        self.hear(seen)

    def hear(self, seen: Seen) -> None:
        """A poll, or the kernel's wake-up, which may come before a deadline that is due."""
        if self.before.listen:
            self.step(Looked(seen))


@settings(max_examples=300)
@given(st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=4), ACTS)
def test_policy_that_is_told_no_ignored_reading_decides_the_same(
    draws: list[float], acts: list[Act]
) -> None:
    both = Both(draws)
    both.step(Added(VMS[0], GIB))
    both.look(Reading(5 * MARGIN_MIB, MARGIN_MIB))
    for act in acts:
        vm = getattr(act.event, "vm", None)
        is_new = isinstance(act.event, Added)
        if act.event is not None and (vm is None or both.told.governs(vm) is not is_new):
            both.step(act.event)
            both.hear(act.readings[0])
        for seen in act.readings:
            both.look(seen)
