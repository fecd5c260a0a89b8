"""When the source is read: by polls while somebody listens, and by the kernel's wake-up."""

import os

import pytest

from balloon_daemon.events import Event, SourceKnown, SourceUnknown
from balloon_daemon.host.watch import SAFETY_POLL_S, MemoryWatch
from balloon_daemon.sizing.decision import NeverLow, Reading
from balloon_daemon.units import MIB
from tests.fakes.still_loop import StillLoop
from tests.fakes.told_memory import ToldMemory

Seen = Reading | NeverLow | None


class Watched:
    """A watch, its source and its loop, and what it has given whom."""

    def __init__(self) -> None:
        self.loop = StillLoop()
        self.memory = ToldMemory()
        self.events: list[Event] = []
        self.watch = MemoryWatch(self.memory, 1.0, self.events.append, self.loop)
        self.taken: list[tuple[float, Seen]] = []

    def take(self, seen: Seen) -> None:
        self.taken.append((self.loop.now_s - 1000.0, seen))


@pytest.fixture
def watched() -> Watched:
    return Watched()


def test_look_of_somebody_else_tells_the_listener_nothing_and_keeps_its_poll(
    watched: Watched,
) -> None:
    watched.watch.listen(watched.take)
    watched.loop.advance(0.75)
    assert watched.watch.look() == Reading(1000, 100)
    assert watched.taken == []
    watched.loop.advance(0.25)
    assert watched.taken == [(1.0, Reading(1000, 100))]


def test_look_without_a_listener_begins_no_polls(watched: Watched) -> None:
    watched.watch.look()
    watched.loop.advance(60.0)
    assert watched.memory.reads == 1


def test_listener_waits_for_the_sources_new_descriptor_after_a_look(watched: Watched) -> None:
    watched.watch.listen(watched.take)
    watched.memory.fd = 7
    watched.watch.look()
    assert list(watched.loop.readers) == [7]


def test_poll_looks_at_the_source_once_for_a_listener_that_listens_again(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []
    monkeypatch.setattr(watched.memory, "wait_fd", lambda: looks.append(watched.loop.now_s))

    def take(_seen: Seen) -> None:
        watched.watch.listen(take)

    watched.watch.listen(take)
    watched.loop.advance(3.0)
    assert looks == [1000.0, 1001.0, 1002.0, 1003.0]


def test_listener_that_raises_is_listening_still(watched: Watched) -> None:
    def fails(_seen: Seen) -> None:
        watched.taken.append((watched.loop.now_s, None))
        raise ValueError("a bug")

    watched.watch.listen(fails)
    watched.loop.advance(2.0)
    assert [at_s for at_s, _ in watched.taken] == [1001.0, 1002.0]


def test_source_is_polled_while_somebody_listens(watched: Watched) -> None:
    watched.watch.listen(watched.take)
    watched.loop.advance(3.0)
    watched.watch.rest()
    watched.loop.advance(60.0)
    assert [at_s for at_s, _ in watched.taken] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("seen", [None, NeverLow("off"), Reading(10, 400), Reading(1000, 400)])
def test_whoever_listens_takes_whatever_is_seen(watched: Watched, seen: Seen) -> None:
    watched.memory.seen = seen
    watched.watch.listen(watched.take)
    watched.loop.advance(1.0)
    assert watched.taken == [(1.0, seen)]


def test_listening_anew_puts_no_poll_off(watched: Watched) -> None:
    # VMs that listen again in turns, each second under lasting pressure, would keep one that
    # looked in a good moment from ever hearing of low memory.
    for _ in range(40):
        watched.watch.listen(watched.take)
        watched.loop.advance(0.1)
    assert [round(at_s, 3) for at_s, _ in watched.taken] == [1.0, 2.0, 3.0, 4.0]


def test_source_that_wakes_us_is_polled_for_safety_until_it_cannot_any_more(
    watched: Watched,
) -> None:
    watched.memory.needs_poll = False
    watched.watch.listen(watched.take)
    watched.loop.advance(SAFETY_POLL_S - 1.0)
    assert watched.taken == []
    watched.memory.needs_poll = True
    watched.watch.listen(watched.take)
    watched.loop.advance(2.0)
    assert len(watched.taken) == 2


def test_look_that_fails_is_followed_by_the_next(watched: Watched) -> None:
    watched.memory.error = MemoryError()
    watched.watch.listen(watched.take)
    watched.loop.advance(1.0)
    watched.memory.error = None
    watched.loop.advance(1.0)
    assert watched.loop.failures == ["MemoryError()"]
    assert [at_s for at_s, _ in watched.taken] == [2.0]


def test_whoever_rests_in_the_midst_of_a_look_is_not_polled_again(watched: Watched) -> None:
    def take_one(seen: Seen) -> None:
        watched.take(seen)
        watched.watch.rest()

    watched.watch.listen(take_one)
    watched.loop.advance(10.0)
    assert len(watched.taken) == 1


def test_wake_up_is_consumed_and_looked_at_and_not_waited_for_at_rest(watched: Watched) -> None:
    fd = os.eventfd(0)
    watched.memory.fd = fd
    watched.watch.listen(watched.take)
    watched.loop.readers[fd]()
    assert watched.memory.acknowledged == 1
    assert len(watched.taken) == 1
    watched.watch.rest()
    assert watched.loop.readers == {}
    os.close(fd)


def test_what_the_source_says_of_itself_is_published_at_each_read(watched: Watched) -> None:
    unknown, known = SourceUnknown("the margin", "no file"), SourceKnown("the margin", 1)
    watched.memory.notices = [unknown, known]
    watched.watch.read()
    assert watched.events == [unknown, known]


def test_another_margin_is_read_with_at_once_by_whoever_listens(watched: Watched) -> None:
    watched.watch.set_margin(300 * MIB)
    assert watched.memory.reads == 0
    watched.watch.listen(watched.take)
    watched.watch.set_margin(2000 * MIB)
    assert watched.taken == [(0.0, Reading(1000, 2000))]
    watched.loop.advance(1.0)
    assert len(watched.taken) == 2


@pytest.mark.parametrize(
    ("available_mib", "after_s"),
    [(1000 + 100, 1.0), (2500 + 100, 2.5), (5000 + 100, 5.0), (90_000 + 100, 5.0)],
)
def test_calm_listeners_next_poll_comes_before_memory_can_be_low(
    available_mib: int, after_s: float, watched: Watched
) -> None:
    watched.memory.fill_mib_s = 1000.0
    watched.memory.seen = Reading(available_mib, 100)

    def take(seen: Seen) -> None:
        watched.take(seen)
        watched.watch.listen(take, calm=True)

    watched.watch.listen(take)
    watched.loop.advance(1.0 + after_s - 0.25)
    assert [at_s for at_s, _ in watched.taken] == [1.0]
    watched.loop.advance(0.25)
    assert [at_s for at_s, _ in watched.taken] == [1.0, 1.0 + after_s]


@pytest.mark.parametrize("seen", [None, NeverLow("off"), Reading(10, 400)])
def test_calm_listener_of_what_is_unknown_or_low_is_polled_as_ever(
    seen: Seen, watched: Watched
) -> None:
    watched.memory.fill_mib_s = 1000.0
    watched.memory.seen = seen
    watched.watch.read()
    watched.watch.listen(watched.take, calm=True)
    watched.loop.advance(1.0)
    assert watched.taken == [(1.0, seen)]


def test_listener_that_is_calm_no_more_is_polled_as_ever(watched: Watched) -> None:
    watched.memory.fill_mib_s = 100.0
    watched.watch.read()
    watched.watch.listen(watched.take, calm=True)
    watched.loop.advance(1.0)
    watched.watch.listen(watched.take)
    watched.loop.advance(1.0)
    assert watched.taken == [(2.0, Reading(1000, 100))]
