"""Other projects' rules under any events: targets stay within limits, and nothing is random."""

from collections.abc import Iterator
from contextlib import suppress
from itertools import cycle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balloon_daemon.ctl.simulate.peers.table import PEERS
from balloon_daemon.errors import StateError
from balloon_daemon.sizing.balloon_policy import PolicySettings, PolicyState, max_balloon_bytes
from balloon_daemon.sizing.decision import NeverLow, Reading
from balloon_daemon.sizing.host_events import (
    Added,
    Asked,
    Event,
    Halted,
    HostStep,
    Looked,
    Measured,
    Moved,
    Paused,
    Ran,
    Removed,
    Reserved,
    Resized,
    Restored,
    Sampled,
    SettingsChanged,
    Unreserved,
    Wanted,
    Woke,
)
from balloon_daemon.sizing.need import Figures
from balloon_daemon.sizing.terms import Terms
from balloon_daemon.sizing.vm_settings import Profile, VmSettings
from balloon_daemon.units import GIB, MIB, PAGE_SIZE, VmId

VMS = [VmId(number, f"vm{number}") for number in range(1, 5)]
VM = st.sampled_from(VMS)
SIZES = st.integers(0, 64 * GIB) | st.sampled_from([0, 400 * MIB, 512 * MIB, GIB, 4 * GIB])
SETTINGS = st.builds(
    VmSettings,
    st.none() | SIZES,
    st.none() | SIZES,
    st.integers(-2, 2),
    st.sampled_from(Profile),
)
TERMS = st.builds(Terms, SETTINGS, st.booleans(), st.booleans())
SEEN = (
    st.none()
    | st.just(NeverLow("switched off"))
    | st.builds(Reading, st.integers(0, 20_000), st.integers(0, 4000))
)
NUMBERS = st.none() | st.integers(0, 1 << 64) | st.integers(0, GIB)
FIGURES = st.builds(
    Figures, st.floats(0, 1e9), NUMBERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS
)
EVENTS = (
    st.builds(Woke, SEEN)
    | st.builds(Moved, VM, SIZES)
    | st.builds(Sampled, VM, FIGURES)
    | st.builds(Resized, VM, SIZES)
    | st.builds(SettingsChanged, VM, SETTINGS)
    | st.builds(Ran, VM, st.booleans())
    | st.builds(Looked, SEEN)
    | st.builds(Measured, VM, SIZES)
    | st.builds(Removed, VM)
    | st.builds(Added, VM, SIZES, SIZES, TERMS)
    | st.builds(Restored, VM, SIZES, st.just(PolicyState()), SIZES, TERMS)
    | st.just(Halted())
    | st.builds(Asked, VM, SIZES)
    | st.just(Paused((), 1.0))
    | st.just(Reserved(1, GIB, 1.0, 1.0))
    | st.just(Unreserved())
    | st.just(Wanted(2, (), GIB, 1.0, 1.0))
)
COURSES = st.lists(st.tuples(st.floats(0, 40), EVENTS), max_size=60)
STARTS = st.lists(st.builds(Added, VM, SIZES, SIZES, TERMS), max_size=4)
HOSTS_MIB = st.sampled_from([0, 1, 16_000])
DRAWS = st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=3)
Course = list[tuple[float, Event]]


def steps(peer: str, course: Course, host_mib: int, draws: list[float]) -> Iterator[HostStep]:
    """What a peer says to each event, and to ``Woke`` whenever it wants that before the event."""
    drawn = cycle(draws)
    policy = PEERS[peer](PolicySettings(), lambda: next(drawn), host_mib)
    now_s, wake_at_s = 1000.0, None
    reading = Reading(100, 400)
    for seconds, event in course:
        now_s += seconds
        while wake_at_s is not None and wake_at_s <= now_s:
            before_s = wake_at_s
            step = policy.step(Woke(reading), wake_at_s)
            wake_at_s = step.wake_at_s
            assert wake_at_s is None or wake_at_s > before_s
            yield step
        if isinstance(event, Sampled):
            event = Sampled(event.vm, event.figures._replace(at_s=now_s))
        with suppress(StateError):
            step = policy.step(event, now_s)
            wake_at_s = step.wake_at_s
            yield step


class Limits:
    """What each VM's settings allow, by the events up to now."""

    def __init__(self) -> None:
        self.vms: dict[VmId, tuple[int, Terms]] = {}

    def take(self, event: Event) -> None:
        match event:
            case Added() | Restored():
                self.vms.setdefault(event.vm, (event.vm_mem_bytes, event.terms))
            case Resized(vm, vm_mem_bytes) if vm in self.vms:
                self.vms[vm] = vm_mem_bytes, self.vms[vm][1]
            case SettingsChanged(vm, settings) if vm in self.vms:
                size, terms = self.vms[vm]
                self.vms[vm] = size, Terms(settings, terms.sends_stats, terms.deflates_on_oom)
            case Removed(vm):
                self.vms.pop(vm, None)

    def check(self, step: HostStep) -> None:
        for vm, target_bytes in step.targets:
            size, terms = self.vms[vm]
            settings = terms.settings
            assert 0 <= target_bytes <= max_balloon_bytes(size)
            assert target_bytes % PAGE_SIZE == 0
            if target_bytes:
                assert size - target_bytes >= (settings.floor_bytes or 0)
                if settings.ceiling_bytes is not None:
                    assert target_bytes <= settings.ceiling_bytes


@pytest.mark.parametrize("peer", PEERS)
@given(STARTS, COURSES, HOSTS_MIB, DRAWS)
def test_every_target_is_within_floor_and_ceiling(
    peer: str, starts: list[Event], course: Course, host_mib: int, draws: list[float]
) -> None:
    drawn = cycle(draws)
    policy = PEERS[peer](PolicySettings(), lambda: next(drawn), host_mib)
    limits, now_s = Limits(), 1000.0
    for seconds, event in [*((0.0, start) for start in starts), *course]:
        now_s += seconds
        with suppress(StateError):
            step = policy.step(event, now_s)
            limits.take(event)
            limits.check(step)
            if step.wake_at_s is not None:
                now_s = max(now_s, step.wake_at_s)
                limits.check(policy.step(Woke(Reading(100, 400)), now_s))


@pytest.mark.parametrize("peer", PEERS)
@given(STARTS, COURSES, HOSTS_MIB, DRAWS)
def test_same_events_and_draws_give_the_same_steps(
    peer: str, starts: list[Event], course: Course, host_mib: int, draws: list[float]
) -> None:
    whole: Course = [*((0.0, start) for start in starts), *course]
    first = list(steps(peer, whole, host_mib, draws))
    assert list(steps(peer, whole, host_mib, draws)) == first
    assert {step.decisions for step in first} <= {()}


@pytest.mark.parametrize("peer", PEERS)
@given(STARTS, COURSES, DRAWS)
def test_nothing_is_asked_after_the_end(
    peer: str, starts: list[Event], course: Course, draws: list[float]
) -> None:
    drawn = cycle(draws)
    policy = PEERS[peer](PolicySettings(), lambda: next(drawn), 16_000)
    now_s, is_over = 1000.0, False
    for seconds, event in [*((0.0, each) for each in [*starts, Halted()]), *course]:
        now_s += seconds
        with suppress(StateError):
            step = policy.step(event, now_s)
            is_over |= isinstance(event, Halted)
            if is_over:
                assert step == HostStep((), (), None, listen=False)
