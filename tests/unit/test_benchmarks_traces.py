"""The ranges that the floor in C is given: those that balloond itself removes."""

import numpy as np

from balloon_daemon.device.reclaim import coalesce
from balloon_daemon.units import PAGE_SIZE
from benchmarks.huge_pages import HUGE, PARTS, whole_pages
from benchmarks.traces import BUFFER_PFNS, Trace, every_trace, runs_of


def test_floor_frees_what_balloond_frees_with_the_same_calls() -> None:
    for trace in every_trace():
        for buffer in trace.buffers[::50]:
            pairs = zip(*coalesce(buffer.tolist()), strict=True)
            wanted = [(n * PAGE_SIZE, m * PAGE_SIZE) for n, m in pairs]
            assert runs_of(buffer).tolist() == [list(place) for place in wanted]


def test_traces_name_every_page_once_and_fill_their_buffers() -> None:
    for trace in every_trace():
        assert len(np.unique(trace.pages())) == len(trace.pages())
        assert {len(buffer) for buffer in trace.buffers} == {BUFFER_PFNS}


def test_huge_pages_come_in_the_order_in_which_they_are_complete() -> None:
    first, second = np.arange(PARTS, dtype=np.uint32), np.arange(PARTS, 2 * PARTS, dtype=np.uint32)
    rest = np.arange(2 * PARTS, 3 * PARTS - 1, dtype=np.uint32)
    trace = Trace("made up", [first[:256], second, rest, first[256:]], fresh=True)
    assert whole_pages(trace).tolist() == [[HUGE, HUGE], [0, HUGE]]
