"""Pages that a guest gives up where nothing can be freed: counted and left alone."""

import errno

import pytest

from balloon_daemon.device.reclaim import Reclaimer
from balloon_daemon.errors import GuestError
from balloon_daemon.units import PAGE_SIZE
from tests.fakes.recording_map import RecordingReclaimer

HUGE = 512
RAM_PAGES = 1024
KEPT_AT = 5000
"""First page frame number of a region that cannot be freed."""


def rig_of(
    layout: list[tuple[int, int, int]], kept: set[int], *, pfns_name_pages: bool = True
) -> RecordingReclaimer:
    """A reclaimer that has no mapping of the regions in ``kept``."""
    rig = RecordingReclaimer(layout)
    maps = [None if index in kept else mapped for index, mapped in enumerate(rig._maps)]
    rig.reclaimer = Reclaimer(
        rig.memory,
        maps,
        lambda code, addr: rig.faults.append((code, addr)),
        must_tell_host=True,
        pfns_name_pages=pfns_name_pages,
    )
    return rig


@pytest.fixture(params=[1, HUGE], ids=["small-pages", "huge-pages"])
def rig(request: pytest.FixtureRequest) -> RecordingReclaimer:
    """RAM, and a region behind it that cannot be freed."""
    return rig_of([(0, RAM_PAGES, 1), (KEPT_AT // HUGE * HUGE, 1024, request.param)], {1})


def test_pages_of_a_region_that_cannot_be_freed_are_counted_and_left(
    rig: RecordingReclaimer,
) -> None:
    rig.inflate(list(range(KEPT_AT + 255, KEPT_AT - 1, -1)))
    rig.inflate([KEPT_AT, KEPT_AT + 7])
    assert rig.take_removed() == []
    assert (rig.reclaimer.kept_pages, rig.reclaimer.removed_bytes) == (258, 0)


def test_pages_of_both_in_one_buffer_go_each_their_way(rig: RecordingReclaimer) -> None:
    rig.inflate([5, KEPT_AT, 6, KEPT_AT + 1])
    assert rig.take_removed() == [5, 6]
    assert (rig.reclaimer.kept_pages, rig.reclaimer.removed_bytes) == (2, 2 * PAGE_SIZE)


def test_pages_that_are_taken_back_from_there_change_nothing(rig: RecordingReclaimer) -> None:
    rig.inflate([KEPT_AT])
    rig.deflate([KEPT_AT])
    assert rig.take_removed() == []


def test_report_that_lies_there_is_answered_and_frees_nothing(rig: RecordingReclaimer) -> None:
    start = KEPT_AT // HUGE * HUGE * PAGE_SIZE
    ranges = [(0, 4 * PAGE_SIZE), (start, HUGE * PAGE_SIZE)]
    assert rig.reclaimer.discard("reporting_vq", 0, ranges) == (4 + HUGE) * PAGE_SIZE
    assert rig.take_removed() == [0, 1, 2, 3]
    assert rig.reclaimer.reported_removed_bytes == 4 * PAGE_SIZE
    assert rig.reclaimer.kept_pages == 0  # Nobody asked for what is reported.


def test_pfn_outside_all_regions_is_refused_as_ever(rig: RecordingReclaimer) -> None:
    with pytest.raises(GuestError):
        rig.inflate([KEPT_AT, 4000])
    assert rig.reclaimer.kept_pages == 0


def test_numbers_that_name_no_page_are_counted_and_none_is_acted_on() -> None:
    # Memory at 16 TiB or above: each number may be a longer one's low 32 bits.
    rig = rig_of([(0, RAM_PAGES, 1), (4096, 1024, HUGE)], set(), pfns_name_pages=False)
    rig.inflate(list(range(256)))
    rig.inflate(list(range(4096, 4096 + HUGE)))
    rig.deflate([1, 2, 3])
    assert rig.take_removed() == []
    assert rig.reclaimer.kept_pages == 256 + HUGE

    # A report carries whole addresses.
    rig.reclaimer.discard("reporting_vq", 0, [(0, PAGE_SIZE), (4096 * PAGE_SIZE, 2 << 20)])
    assert rig.take_removed() == [0, *range(4096, 4096 + HUGE)]


def test_pages_that_the_kernel_refuses_are_counted_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = rig_of([(0, RAM_PAGES, 1)], set())

    def refuse(option: int, start: int, length: int) -> None:
        raise OSError(errno.EPERM, "not permitted")

    rig.inflate(list(range(10)))
    monkeypatch.setattr(rig._maps[0], "madvise", refuse)
    rig.inflate(list(range(100, 356)))
    rig.inflate([400, 402])
    rig.reclaimer.discard("reporting_vq", 0, [(0, 8 * PAGE_SIZE)])

    assert rig.reclaimer.refused_pages == 256 + 2 + 8
    assert rig.reclaimer.removed_bytes == 10 * PAGE_SIZE
    assert rig.reclaimer.reported_removed_bytes == 0
    assert len(rig.faults) == 4
