"""Many VMs with any settings, whatever happens: every target is within its VM's limits."""

from dataclasses import replace
from itertools import cycle
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from balloon_daemon.sizing.balloon_policy import PolicySettings, max_balloon_bytes
from balloon_daemon.sizing.decision import InNeed, Reading
from balloon_daemon.sizing.host_events import (
    Added,
    Asked,
    Event,
    HostStep,
    Looked,
    Measured,
    Moved,
    Ran,
    Resized,
    Sampled,
    Seen,
    SettingsChanged,
    Target,
    Woke,
)
from balloon_daemon.sizing.host_policy import HostPolicy
from balloon_daemon.sizing.need import Figures
from balloon_daemon.sizing.terms import Terms
from balloon_daemon.sizing.vm_settings import Profile, VmSettings
from balloon_daemon.units import GIB, MIB, PAGE_SIZE, VmId

VMS = [VmId(number, f"vm{number}") for number in range(1, 5)]
SIZES = st.one_of(
    st.integers(0, 64 * GIB), st.sampled_from([0, 400 * MIB, 512 * MIB, GIB, 4 * GIB])
)
SETTINGS = st.builds(
    VmSettings,
    st.none() | SIZES,
    st.none() | SIZES,
    st.integers(-2, 2),
    st.sampled_from(Profile),
)
TERMS = st.builds(Terms, SETTINGS, st.booleans(), st.booleans())
LOW = Reading(10, 400)
READINGS = st.one_of(
    st.none(), st.just(LOW), st.builds(Reading, st.integers(0, 4000), st.integers(0, 4000))
)
DRAWS = st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=8)


NUMBERS = st.none() | st.integers(0, 1 << 64) | st.integers(0, GIB)
FIGURES = st.builds(Figures, st.just(0.0), NUMBERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS)


class Act(NamedTuple):
    """A VM reports something, an operator asks for a size, and time goes by."""

    vm: VmId
    seconds: float
    seen: Seen
    balloon_share: float | None
    vm_mem_bytes: int | None
    figures: Figures | None
    held_bytes: int | None
    runs: bool | None
    asked_bytes: int | None
    settings: VmSettings | None


ACTS = st.lists(
    st.builds(
        Act,
        st.sampled_from(VMS),
        st.floats(0, 40),
        READINGS,
        st.none() | st.floats(0, 1),
        st.none() | SIZES,
        st.none() | FIGURES,
        st.none() | SIZES,
        st.none() | st.booleans(),
        st.none() | SIZES,
        st.none() | SETTINGS,
    ),
    max_size=40,
)


class World:
    """A host's policy, and what its VMs were told."""

    def __init__(self, terms: list[Terms], sizes: list[int], draws: list[float]) -> None:
        drawn = cycle(draws)
        self.host = HostPolicy(PolicySettings(), lambda: next(drawn), lambda _vm, _level: None)
        self.now_s = 1000.0
        self.terms = dict(zip(VMS, terms, strict=True))
        self.sizes = dict(zip(VMS, sizes, strict=True))
        for vm in VMS:
            self.step(Added(vm, self.sizes[vm], 0, self.terms[vm]))

    def step(self, event: Event) -> HostStep:
        step = self.host.step(event, self.now_s)
        for vm, target_bytes in step.targets:
            self.check(vm, target_bytes)
        return step

    def check(self, vm: VmId, target_bytes: int) -> None:
        settings, size = self.terms[vm].settings, self.sizes[vm]
        assert 0 <= target_bytes <= max_balloon_bytes(size)
        assert target_bytes % PAGE_SIZE == 0
        if target_bytes:
            assert size - target_bytes >= (settings.floor_bytes or 0)
            if settings.ceiling_bytes is not None:
                assert target_bytes <= settings.ceiling_bytes


@given(
    st.lists(TERMS, min_size=4, max_size=4),
    st.lists(SIZES, min_size=4, max_size=4),
    ACTS,
    DRAWS,
)
def test_every_target_is_within_floor_and_ceiling(
    terms: list[Terms], sizes: list[int], acts: list[Act], draws: list[float]
) -> None:
    world = World(terms, sizes, draws)
    for act in acts:
        play(world, act)
        for vm in VMS:
            world.check(vm, world.host.target_bytes(vm))


def change(world: World, vm: VmId, settings: VmSettings) -> None:
    told_bytes = world.host.target_bytes(vm)
    world.terms[vm] = replace(world.terms[vm], settings=settings)
    step = world.step(SettingsChanged(vm, settings))
    most_bytes = world.host.policy(vm).max_bytes
    # A balloon that may be as large as it is hears nothing of it.
    assert step.targets == ((Target(vm, most_bytes),) if told_bytes > most_bytes else ())
    assert world.host.policy(vm).target_bytes <= most_bytes


def play(world: World, act: Act) -> None:
    vm = act.vm
    if act.balloon_share is not None:
        world.step(Moved(vm, int(world.sizes[vm] * act.balloon_share)))
    if act.vm_mem_bytes is not None:
        world.sizes[vm] = act.vm_mem_bytes
        world.step(Resized(vm, act.vm_mem_bytes))
    if act.runs is not None:
        world.step(Ran(vm, act.runs))
    if act.asked_bytes is not None:
        world.step(Asked(vm, act.asked_bytes, act.seconds))
    if act.settings is not None:
        change(world, vm, act.settings)
    if act.held_bytes is not None:
        world.step(Measured(vm, act.held_bytes))
    if act.figures is not None:
        told_bytes = world.host.target_bytes(vm)
        step = world.step(Sampled(vm, act.figures._replace(at_s=world.now_s)))
        # A guest in need has nothing left to give after the very step that noticed it.
        in_need = any(isinstance(found.finding, InNeed) for found in step.findings)
        assert not (in_need and world.host.target_bytes(vm))
        assert not in_need or (Target(vm, 0) in step.targets and told_bytes > 0)
    world.now_s += act.seconds
    step = world.step(Woke(act.seen))
    assert step.wake_at_s is None or step.wake_at_s > world.now_s
    if step.listen:
        world.step(Looked(act.seen))
