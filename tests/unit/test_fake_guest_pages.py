"""Which pages a fake guest gives up, and in which order."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from balloon_daemon.errors import ConfigError
from balloon_daemon.fake_guest.pages import (
    BUFFER_PFNS,
    PageStack,
    Population,
    populate,
    read_trace,
    whole_blocks,
)
from balloon_daemon.fake_guest.ram import GuestRam, PageState
from balloon_daemon.units import MIB, PAGE_SIZE

TRACES = sorted((Path(__file__).parents[1] / "data" / "traces").glob("*.npz"))
PAGES = 8 * MIB // PAGE_SIZE


@pytest.fixture
def make_ram() -> Iterator[Callable[[int], GuestRam]]:
    made: list[GuestRam] = []

    def make(size_bytes: int = 8 * MIB) -> GuestRam:
        made.append(GuestRam([(0, size_bytes)]))
        return made[-1]

    yield make
    for ram in made:
        ram.close()


MakeRam = Callable[[int], GuestRam]


def test_stack_gives_back_in_reverse_and_then_takes_as_before() -> None:
    stack = PageStack(np.arange(10), 10)

    taken = stack.take(4)
    stack.give(taken[::-1])

    assert taken.tolist() == [0, 1, 2, 3]
    assert stack.take(4).tolist() == [0, 1, 2, 3]


def test_stack_gives_no_more_than_it_has() -> None:
    stack = PageStack(np.arange(3), 3)

    assert stack.take(5).tolist() == [0, 1, 2]
    assert stack.take(5).tolist() == []


def test_stack_given_last_is_taken_last() -> None:
    stack = PageStack(np.arange(3), 5)

    stack.give_last(np.array([3, 4]))

    assert sorted(stack.take(5).tolist()[3:]) == [3, 4]


def test_stack_without_some_pages_keeps_the_order_of_the_rest() -> None:
    stack = PageStack(np.arange(6), 6)

    stack.remove(np.array([0, 3]))

    assert stack.take(6).tolist() == [1, 2, 4, 5]


@pytest.mark.parametrize("order", ["descending", "fragmented", "random"])
def test_order_gives_every_page_once(make_ram: MakeRam, order: str) -> None:
    free = populate(make_ram(8 * MIB), Population(order=order))

    assert sorted(free.next().tolist()) == list(range(PAGES))


def test_descending_order_descends(make_ram: MakeRam) -> None:
    assert set(np.diff(populate(make_ram(8 * MIB), Population()).next()).tolist()) == {-1}


def test_fragmented_order_has_runs_of_about_the_mean_asked_for(make_ram: MakeRam) -> None:
    population = Population(order="fragmented", run_pages=8)

    steps = np.diff(populate(make_ram(8 * MIB), population).next())

    assert PAGES / 16 < np.count_nonzero(steps != -1) < PAGES / 4


def test_same_seed_gives_the_same_order_and_another_another(make_ram: MakeRam) -> None:
    population = Population(order="random", seed=5)

    first = populate(make_ram(8 * MIB), population).next().tolist()
    same = populate(make_ram(8 * MIB), population).next().tolist()
    other = populate(make_ram(8 * MIB), replace(population, seed=6)).next().tolist()

    assert first == same
    assert first != other


def test_touched_memory_is_given_up_first(make_ram: MakeRam) -> None:
    ram = make_ram(8 * MIB)

    free = populate(ram, Population(touched_bytes=2 * MIB))

    states = ram.state[free.next()]
    assert (states[: 2 * MIB // PAGE_SIZE] == PageState.PATTERN).all()
    assert ram.count(PageState.PATTERN) == 2 * MIB // PAGE_SIZE


def test_touched_memory_with_a_share_is_mixed_by_whole_buffers(make_ram: MakeRam) -> None:
    ram = make_ram(8 * MIB)

    free = populate(ram, Population(touched_bytes=2 * MIB, share=0.5))

    touched = ram.state[free.next()] == PageState.PATTERN
    per_buffer = touched.reshape(-1, BUFFER_PFNS).sum(axis=1).tolist()
    assert per_buffer == [0, 256, 0, 256, 0, 0, 0, 0]


def test_pinned_memory_is_touched_spread_and_never_free(make_ram: MakeRam) -> None:
    ram = make_ram(8 * MIB)

    free = populate(ram, Population(pinned_bytes=1 * MIB, pinned_run_pages=4))

    pinned = np.flatnonzero(ram.state == PageState.PATTERN)
    assert len(pinned) == 256
    assert np.intersect1d(pinned, free.next()).tolist() == []
    assert np.count_nonzero(np.diff(pinned) != 1) == 63


@pytest.mark.parametrize(
    "population",
    [
        Population(touched_bytes=9 * MIB),
        Population(pinned_bytes=9 * MIB),
        Population(touched_bytes=MIB, share=0),
        Population(touched_bytes=MIB, share=1.5),
        Population(order="upwards"),
        Population(order="/nowhere/trace.npz"),
    ],
)
def test_population_that_cannot_be_is_refused(make_ram: MakeRam, population: Population) -> None:
    with pytest.raises(ConfigError):
        populate(make_ram(8 * MIB), population)


@pytest.mark.parametrize("trace", TRACES, ids=lambda path: path.stem)
def test_trace_is_played_back_in_its_own_order(make_ram: MakeRam, trace: Path) -> None:
    ram = make_ram(2048 * MIB)
    with np.load(trace) as recorded:
        pfns = recorded["pfns"]

    assert np.array_equal(read_trace(ram, str(trace)), pfns)


def test_trace_in_a_smaller_guest_leaves_out_what_is_not_there(make_ram: MakeRam) -> None:
    ram = make_ram(64 * MIB)

    pages = read_trace(ram, str(TRACES[0]))

    assert len(pages) > 0
    assert pages.max() < ram.num_pages


def test_whole_blocks_are_free_aligned_and_hold_memory(make_ram: MakeRam) -> None:
    ram = make_ram(8 * MIB)
    ram.reserve(PAGE_SIZE)
    free = populate(ram, Population(touched_bytes=8 * MIB - PAGE_SIZE))
    free.remove(np.array([600]))

    # Of four blocks of 2 MiB one has a page in use, one the driver's own.
    assert whole_blocks(ram, free, 512).tolist() == [0, 1024]


def test_untouched_blocks_are_not_worth_reporting(make_ram: MakeRam) -> None:
    ram = make_ram(8 * MIB)
    free = populate(ram, Population(touched_bytes=2 * MIB))

    assert whole_blocks(ram, free, 512).tolist() == [1536]
