"""Which sizes of a balloon are reported while its driver writes one with each buffer."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from balloon_daemon.guests.jailed.actual_reports import EVERY_S, ActualReports
from balloon_daemon.units import NumPages
from balloon_daemon.virtio.balloon import BalloonConfig
from tests.fakes.still_loop import StillLoop


class Written:
    """A driver's writes, and the reports with their times."""

    def __init__(self, target: int = 100, *, each: bool = False) -> None:
        self.loop = StillLoop()
        self.config = BalloonConfig(NumPages(target))
        self.reports: list[tuple[float, int]] = []
        self.writes: list[tuple[float, int]] = []
        self._actual = ActualReports(self.config, self._take, self.loop)
        self._actual.each = each

    def _take(self, pages: int) -> None:
        self.reports.append((self.loop.now_s, pages))

    def write(self, pages: int, later_s: float = 0.0) -> None:
        self.loop.advance(later_s)
        self.config.actual = NumPages(pages)
        self.writes.append((self.loop.now_s, pages))
        self._actual.written()

    def end(self) -> None:
        self._actual.end()

    @property
    def sizes(self) -> list[int]:
        return [pages for _, pages in self.reports]


SIZES = st.integers(0, 12)
ACTS = st.lists(
    st.tuples(st.sampled_from(["write", "target"]), SIZES, st.sampled_from([0.0, 0.01, 0.04, 0.2]))
)


@given(target=SIZES, acts=ACTS)
def test_each_size_off_the_way_to_the_target_is_reported_at_once_and_the_last_one_soon(
    target: int, acts: list[tuple[str, int, float]]
) -> None:
    guest = Written(target)
    before = 0
    for what, size, later_s in acts:
        if what == "target":
            guest.loop.advance(later_s)
            guest.config.num_pages = NumPages(size)
            continue
        guest.write(size, later_s)
        wanted = guest.config.num_pages
        if not (before <= size < wanted or wanted < size <= before):
            # The size at which it turned is reported, too.
            assert guest.reports[-1] == (guest.loop.now_s, size)
            assert guest.sizes[-2:-1] == [before] * (len(guest.writes) > 1)
        before = size
        _is_late_by_at_most_one_rest(guest)
    guest.loop.advance(EVERY_S)
    assert guest.sizes[-1:] == [before] * bool(guest.writes)


def _is_late_by_at_most_one_rest(guest: Written) -> None:
    """What was reported last is what was written last, or was so until a moment ago."""
    at_s, last = guest.reports[-1]
    since = [pages for when_s, pages in guest.writes if when_s > at_s - 1e-9]
    assert last == guest.writes[-1][1] or (since and guest.loop.now_s - at_s <= EVERY_S + 1e-9)


@given(target=SIZES, acts=ACTS)
def test_each_size_of_a_guest_that_is_protected_is_reported(
    target: int, acts: list[tuple[str, int, float]]
) -> None:
    guest = Written(target, each=True)
    for _, size, later_s in acts:
        guest.write(size, later_s)
    assert guest.reports == guest.writes


@given(every_ms=st.integers(1, 100), count=st.integers(1, 60))
def test_balloon_on_its_way_is_reported_once_in_a_while(every_ms: int, count: int) -> None:
    guest = Written(target=1000)
    for pages in range(1, count + 1):
        guest.write(pages, every_ms / 1000)
    guest.loop.advance(EVERY_S)
    assert guest.sizes == sorted(set(guest.sizes))
    assert guest.sizes[-1] == count
    # The first one of a rest is reported at once, and the last one when the rest ends.
    times = [at_s for at_s, _ in guest.reports]
    assert all(then_s - now_s > EVERY_S - 1e-9 for now_s, then_s in pairwise(times))


def test_size_at_which_a_balloon_turned_is_reported_before_the_next() -> None:
    guest = Written(target=100)
    for pages in (10, 20, 30, 29):
        guest.write(pages)
    assert guest.sizes == [10, 30, 29]


def test_target_is_reported_each_time_that_it_is_written() -> None:
    guest = Written(target=0)
    for _ in range(3):
        guest.write(0)
    assert guest.sizes == [0, 0, 0]


def test_guest_that_becomes_a_protected_one_meanwhile_loses_no_size() -> None:
    guest = Written(target=100)
    guest.write(10)
    guest.write(20)
    guest._actual.each = True
    guest.write(30)
    guest.write(40)
    assert guest.sizes == [10, 20, 30, 40]


def test_nothing_is_reported_after_the_end() -> None:
    guest = Written(target=100)
    guest.write(10)
    guest.write(20)
    guest.end()
    guest.loop.advance(1.0)
    assert guest.sizes == [10]
