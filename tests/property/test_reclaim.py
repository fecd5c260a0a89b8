"""Reclaiming against naive models: sets of pages."""

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from balloon_daemon.device.reclaim import coalesce, runs_of
from balloon_daemon.errors import GuestError
from balloon_daemon.units import PAGE_SIZE
from tests.fakes.recording_map import RecordingReclaimer, buffer_of

PFNS = st.lists(st.one_of(st.integers(0, 60), st.integers(0, 2**32 - 1)), min_size=1, max_size=60)


@given(PFNS)
def test_coalesced_runs_are_the_same_pages_ascending_and_apart(pfns: list[int]) -> None:
    wanted = set(pfns)
    runs = list(zip(*coalesce(pfns), strict=True))
    assert {pfn for first, count in runs for pfn in range(first, first + count)} == wanted
    ends = [first + count for first, count in runs]
    # A gap of one page at least: neighbours would have been merged.
    assert all(end < first for end, (first, _) in zip(ends, runs[1:], strict=False))
    assert all(count >= 1 for _, count in runs)


@settings(max_examples=150)
@given(
    st.integers(0, 2**32 - 256),
    st.sampled_from([1, -1]),
    st.lists(st.tuples(st.integers(0, 255), st.integers(0, 2**32 - 1)), max_size=2),
)
def test_runs_of_a_run_with_a_few_other_pages_are_those_of_its_sorted_pages(
    lowest: int, step: int, changes: list[tuple[int, int]]
) -> None:
    pfns = list(range(lowest, lowest + 256))[::step]
    for place, pfn in changes:
        pfns[place] = pfn
    assert runs_of(buffer_of(pfns)) == coalesce(list(pfns))


HOST_PAGE = 8
"""4 KiB pages in a host page of the model: few enough that random buffers complete some."""

# Small pages that touch huge ones, a gap, then huge ones with a rest that is no whole page.
LAYOUT = [(0, 16, 1), (16, 24, HOST_PAGE), (50, 20, HOST_PAGE), (70, 10, 1)]
EXISTING = sorted({pfn for first, pages, _ in LAYOUT for pfn in range(first, first + pages)})
SMALL = {pfn for first, pages, host in LAYOUT if host == 1 for pfn in range(first, first + pages)}
HUGE = [
    set(range(first + at, first + at + HOST_PAGE))
    for first, pages, host in LAYOUT
    if host > 1
    for at in range(0, pages - HOST_PAGE + 1, HOST_PAGE)
]
BUFFERS = st.one_of(
    st.lists(st.sampled_from(EXISTING), min_size=1, max_size=20),
    st.builds(
        lambda first, count: [pfn for pfn in range(first, first + count) if pfn in EXISTING],
        st.integers(0, 79),
        st.integers(1, 30),
    ).filter(bool),
    st.lists(st.integers(0, 90), min_size=1, max_size=20),
)


class GuestAndHost(RuleBasedStateMachine):
    """A guest that hands pages over and takes them back in any order, also wrongly."""

    @initialize(must_tell_host=st.booleans())
    def start(self, must_tell_host: bool) -> None:
        self.must_tell_host = must_tell_host
        self.rig = RecordingReclaimer(LAYOUT, must_tell_host=must_tell_host)
        self.balloon: set[int] = set()

    @rule(pfns=BUFFERS)
    def inflate(self, pfns: list[int]) -> None:
        given = set(pfns)
        try:
            self.rig.inflate(pfns)
        except GuestError:
            assert given - set(EXISTING)
            given = set()
        before = self.balloon if self.must_tell_host else set[int]()
        after = before | given
        self.balloon = self.balloon | given
        expected = given & SMALL
        for page in HUGE:
            if page <= after and not page <= before:
                expected |= page
        removed = self.rig.take_removed()
        assert set(removed) == expected
        assert len(removed) == len(expected)

    @rule(pfns=BUFFERS)
    def deflate(self, pfns: list[int]) -> None:
        taken = set(pfns)
        try:
            self.rig.deflate(pfns)
        except GuestError:
            assert taken - set(EXISTING)
            taken = set()
        self.balloon -= taken
        assert self.rig.take_removed() == []

    @rule(first_byte=st.integers(0, 90 * PAGE_SIZE), length=st.integers(0, 30 * PAGE_SIZE))
    def report(self, first_byte: int, length: int) -> None:
        covered = set(range(-(-first_byte // PAGE_SIZE), (first_byte + length) // PAGE_SIZE))
        try:
            self.rig.reclaimer.discard("reporting_vq", 0, [(first_byte, length)])
        except GuestError:
            covered = set()
        expected = covered & SMALL
        for page in HUGE:
            if page <= covered:
                expected |= page
        assert sorted(self.rig.take_removed()) == sorted(expected)


GuestAndHost.TestCase.settings = settings(max_examples=30, stateful_step_count=25)
test_nothing_is_removed_that_the_guest_did_not_hand_over = GuestAndHost.TestCase
