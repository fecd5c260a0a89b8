"""The profile ``adaptive``: what it promises whatever guests are, and whatever they say."""

from itertools import cycle

from hypothesis import given, settings
from hypothesis import strategies as st

from balloon_daemon.sizing.decision import Reading
from balloon_daemon.sizing.need import Figures
from balloon_daemon.sizing.terms import Terms
from balloon_daemon.sizing.vm_settings import Profile, VmSettings
from balloon_daemon.units import GIB, MIB, VmId
from tests.harness.adaptive_host import ADAPTIVE, AdaptiveHost, Guest, turned_within, well

VMS = [VmId(number, f"vm{number}") for number in range(1, 5)]
LOW = Reading(10, 400)
PLENTY = Reading(1 << 20, 400)
DRAWS = st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=5)
SIZES = st.sampled_from([400 * MIB, 512 * MIB, GIB, 3 * GIB, 64 * GIB])
RATES = st.sampled_from([20 * MIB, 100 * MIB, GIB])


def silent(_at_s: float, _figures: Figures) -> None:
    """No statistics."""


def squeezed(_at_s: float, figures: Figures) -> Figures:
    """Statistics of a guest that has nothing to spare, but is not in need."""
    return figures._replace(available_bytes=GIB * 8, free_bytes=0)


def terms(profile: Profile, *, stats: bool, priority: int = 0) -> Terms:
    return Terms(VmSettings(profile=profile, priority=priority), sends_stats=stats)


GUESTS = st.builds(
    Guest,
    SIZES,
    st.builds(terms, st.just(Profile.ADAPTIVE), stats=st.just(value=True)),
    RATES,
    says=st.sampled_from([well, squeezed]),
) | st.builds(
    Guest,
    SIZES,
    st.builds(terms, st.sampled_from(Profile), stats=st.just(value=False)),
    RATES,
    says=st.just(silent),
)


def hosts(guests: list[Guest], draws: list[float]) -> AdaptiveHost:
    drawn = cycle(draws)
    named = dict(zip(VMS, guests, strict=False))
    return AdaptiveHost(named, draw=lambda: next(drawn))


@settings(max_examples=30)
@given(st.lists(GUESTS, min_size=1, max_size=4), DRAWS)
def test_memory_that_stays_low_is_answered_with_all_within_16_s(
    guests: list[Guest], draws: list[float]
) -> None:
    for guest in guests:
        guest.rate = GIB * 64  # A slower one may be found stalled, and is asked for no more then.
    host = hosts(guests, draws)
    host.live(10)
    host.reads = LOW
    host.live(17)  # One second at most until it is seen to be low.
    assert host.told_bytes == host.most_bytes


@settings(max_examples=30)
@given(st.lists(GUESTS, min_size=1, max_size=4), DRAWS, st.integers(1, 40))
def test_all_is_back_within_9_minutes_of_the_last_low_memory(
    guests: list[Guest], draws: list[float], seconds: int
) -> None:
    host = hosts(guests, draws)
    host.reads = LOW
    host.live(seconds)
    host.reads = PLENTY
    host.live(9 * 60)
    assert host.told_bytes == 0


LEVELS = st.integers(0, 1400).map(lambda mib: mib * MIB)
LIES = st.lists(st.tuples(LEVELS, LEVELS, st.integers(0, 1)), min_size=1, max_size=12)


def liar(lies: list[tuple[int, int, int]]) -> Guest:
    """A guest whose statistics have nothing to do with what is taken from it."""
    told = cycle(lies)

    def says(at_s: float, _figures: Figures) -> Figures:
        available, free, reads = next(told)
        return Figures(at_s, available, free, 0, 0, 0, int(at_s) * reads * 20 * MIB)

    return Guest(2 * GIB, says=says)


DEMANDS = st.lists(st.tuples(st.integers(-1500, 4000), st.integers(1, 30)), min_size=1, max_size=8)


@settings(max_examples=30)
@given(st.lists(LIES, min_size=2, max_size=3), DEMANDS)
def test_no_target_turns_within_10_s_whatever_guests_say(
    lies: list[list[tuple[int, int, int]]], demands: list[tuple[int, int]]
) -> None:
    host = hosts([liar(each) for each in lies], [0.5])
    for bare_mib, seconds in demands:
        host.bare_mib = bare_mib
        host.live(seconds)
    assert turned_within(host.turns, 10.0) == []


@settings(max_examples=30)
@given(st.lists(LIES, min_size=1, max_size=1), st.integers(-200, 300))
def test_a_liar_makes_another_guest_give_no_more_than_it_can_spare(
    lies: list[list[tuple[int, int, int]]], bare_mib: int
) -> None:
    honest = Guest(2 * GIB, free_mib=1200, cache_mib=300)
    host = hosts([liar(lies[0]), honest], [0.5])
    host.live(3)
    host.bare_mib = bare_mib
    host.live(60)
    # What it keeps is its need's limit and half as much again, whatever the other one says.
    kept = honest.figures(0.0).available_bytes
    assert kept is not None
    assert kept >= 1.5 * 0.08 * 2 * GIB - MIB or host.low_s > 3


@settings(max_examples=30)
@given(st.lists(GUESTS, min_size=1, max_size=4), DEMANDS, DRAWS)
def test_the_same_events_make_the_same_decisions(
    guests: list[Guest], demands: list[tuple[int, int]], draws: list[float]
) -> None:
    told = []
    for _ in range(2):
        host = hosts([Guest(g.vm_mem_bytes, g.terms, g.rate, says=g.says) for g in guests], draws)
        for bare_mib, seconds in demands:
            host.bare_mib = bare_mib
            host.live(seconds)
        told.append(host.decisions)
    assert told[0] == told[1]
    assert ADAPTIVE.is_adaptive
