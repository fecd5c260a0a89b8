"""What is removed of guest memory: what the guest handed over, and only whole host pages."""

import pytest

from balloon_daemon.device.reclaim import coalesce, runs_of
from balloon_daemon.errors import GuestError, Rule
from balloon_daemon.units import PAGE_SIZE
from tests.fakes.recording_map import RecordingReclaimer, buffer_of

HUGE = 512
"""4 KiB pages in a huge page of 2 MiB."""


@pytest.mark.parametrize(
    ("pfns", "runs"),
    [
        ([7], [(7, 1)]),
        ([3, 2, 1], [(1, 3)]),
        ([1, 1, 1], [(1, 1)]),
        ([5, 3, 4, 4, 9], [(3, 3), (9, 1)]),
        ([2**32 - 1, 0], [(0, 1), (2**32 - 1, 1)]),
        (list(range(256, 0, -1)), [(1, 256)]),
        (list(range(0, 512, 2)), [(n, 1) for n in range(0, 512, 2)]),
    ],
)
def test_coalesce_merges_neighbours_and_repetitions(
    pfns: list[int], runs: list[tuple[int, int]]
) -> None:
    assert list(zip(*coalesce(pfns), strict=True)) == runs


NEARLY_ONE_RUN = [
    [*range(1000, 745, -1), 744],
    [1000, *range(1000, 745, -1)],
    [744, *range(999, 744, -1)],
    [*range(745, 1000), 1001],
    [*range(255, -1, -1)],
    [*range(2**32 - 256, 2**32)],
    [2**32 - 1, *range(254), 2**32 - 256],
    [0, *range(2**32 - 255, 2**32)],
]


@pytest.mark.parametrize("pfns", NEARLY_ONE_RUN)
def test_runs_of_a_usual_buffer_are_those_of_its_sorted_pages(pfns: list[int]) -> None:
    # 256 PFNs in one run are recognised without sorting; these are such runs, or all but.
    assert len(pfns) == 256
    assert runs_of(buffer_of(pfns)) == coalesce(list(pfns))


def test_inflate_of_one_run_is_one_removal() -> None:
    rig = RecordingReclaimer([(0, 1024, 1)])
    rig.inflate(list(range(300, 44, -1)))
    assert rig.take_removed() == list(range(45, 301))
    assert (rig.reclaimer.removals, rig.reclaimer.removed_bytes) == (1, 256 * PAGE_SIZE)


def test_inflate_across_touching_regions_removes_from_each_its_own() -> None:
    rig = RecordingReclaimer([(0, 10, 1), (10, 10, 1), (20, 10, 1)])
    rig.inflate(list(range(5, 25)))
    assert rig.take_removed() == list(range(5, 25))
    assert rig.reclaimer.removals == 3


@pytest.mark.parametrize("outside", [9, 20, 99, 105, 2**32 - 1])
def test_pfn_outside_memory_removes_nothing_of_its_buffer(outside: int) -> None:
    rig = RecordingReclaimer([(10, 10, 1), (100, 5, 1)])
    with pytest.raises(GuestError) as caught:
        rig.inflate([10, 100, outside, 11], head=3)
    assert (caught.value.head, caught.value.rule, caught.value.found) == (3, Rule.PFN, outside)
    assert rig.take_removed() == []


def test_run_that_leaves_its_region_names_the_first_page_outside() -> None:
    rig = RecordingReclaimer([(0, 10, 1)])
    with pytest.raises(GuestError) as caught:
        rig.inflate([8, 9, 10, 11])
    assert caught.value.found == 10


# --- huge pages -------------------------------------------------------------------------------


def test_huge_page_is_removed_once_its_last_part_is_handed_over() -> None:
    rig = RecordingReclaimer([(0, 2 * HUGE, HUGE)])
    rig.inflate(list(range(1, HUGE)))
    assert rig.take_removed() == []
    rig.inflate([0])
    assert rig.take_removed() == list(range(HUGE))


def test_huge_page_with_a_part_taken_back_is_not_removed() -> None:
    rig = RecordingReclaimer([(0, HUGE, HUGE)])
    rig.inflate(list(range(HUGE - 1)))
    rig.deflate([7])
    rig.inflate([HUGE - 1])
    assert rig.take_removed() == []
    rig.inflate([7])
    assert rig.take_removed() == list(range(HUGE))


def test_huge_page_whose_parts_may_be_in_use_again_is_not_removed() -> None:
    # Without VIRTIO_BALLOON_F_MUST_TELL_HOST the driver may use page 7 at once, and tell later
    # (virtio 1.3, 5.5.6): here its buffer on the deflateq has not been looked at yet.
    rig = RecordingReclaimer([(0, HUGE, HUGE)], must_tell_host=False)
    rig.inflate(list(range(HUGE - 1)))
    rig.inflate([HUGE - 1])
    assert rig.take_removed() == []


def test_huge_page_in_one_buffer_is_removed_whatever_the_driver_promised() -> None:
    rig = RecordingReclaimer([(0, 2 * HUGE, HUGE)], must_tell_host=False)
    rig.inflate(list(range(3, HUGE + 3)))
    assert rig.take_removed() == []
    rig.inflate(list(range(2 * HUGE)))
    assert rig.take_removed() == list(range(2 * HUGE))


def test_small_pages_beside_huge_ones_are_removed_as_they_are() -> None:
    rig = RecordingReclaimer([(0, HUGE, HUGE), (HUGE, 10, 1)])
    rig.inflate([HUGE - 1, HUGE, HUGE + 1])
    assert rig.take_removed() == [HUGE, HUGE + 1]


def test_rest_of_a_region_that_is_no_whole_huge_page_is_never_removed() -> None:
    rig = RecordingReclaimer([(0, HUGE + 10, HUGE)])
    rig.inflate(list(range(HUGE, HUGE + 10)))
    rig.reclaimer.discard("reporting_vq", 0, [(HUGE * PAGE_SIZE, 10 * PAGE_SIZE)])
    assert rig.take_removed() == []


# --- free page reporting ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first_byte", "length", "removed"),
    [
        (0, 4096, [0]),
        (1, 4096, []),
        (1, 8191, [1]),
        (4095, 4098, [1]),
        (4096, 12287, [1, 2]),
        (0, 0, []),
        (40960, 0, []),
    ],
)
def test_discard_removes_the_whole_pages_of_a_range(
    first_byte: int, length: int, removed: list[int]
) -> None:
    rig = RecordingReclaimer([(0, 10, 1)])
    assert rig.reclaimer.discard("reporting_vq", 0, [(first_byte, length)]) == length
    assert rig.take_removed() == removed


def test_discard_across_touching_regions_removes_from_each_its_own() -> None:
    rig = RecordingReclaimer([(0, 10, 1), (10, 10, 1)])
    span = (8 * PAGE_SIZE, 4 * PAGE_SIZE)
    assert rig.reclaimer.discard("reporting_vq", 0, [span]) == 4 * PAGE_SIZE
    assert rig.take_removed() == [8, 9, 10, 11]


def test_discard_of_parts_of_a_huge_page_in_two_ranges_removes_nothing() -> None:
    rig = RecordingReclaimer([(0, HUGE, HUGE)])
    half = HUGE // 2 * PAGE_SIZE
    rig.reclaimer.discard("reporting_vq", 0, [(0, half), (half, half)])
    assert rig.take_removed() == []


@pytest.mark.parametrize("bad", [(40960, 1), (36864, 4097), (2**64 - 1, 2**32 - 1)])
def test_discard_with_one_range_outside_removes_nothing(bad: tuple[int, int]) -> None:
    rig = RecordingReclaimer([(0, 10, 1)])
    with pytest.raises(GuestError) as caught:
        rig.reclaimer.discard("reporting_vq", 9, [(0, 4096), bad])
    assert (caught.value.head, caught.value.rule, caught.value.found) == (9, Rule.ADDRESS, bad[0])
    assert rig.take_removed() == []
