"""The queue of events: when readers get them, in which order, and what a flood costs."""

import asyncio
import time
from collections.abc import Callable

from balloon_daemon.events import (
    Event,
    EventsLost,
    NotAccepted,
    ReaderFailed,
    Stopping,
    StoreLost,
)
from balloon_daemon.records.bus import MOST, TURN_S, Bus


def numbered(number: int) -> Event:
    return NotAccepted(str(number))


def test_event_is_read_after_the_turn_in_which_it_was_published() -> None:
    read: list[Event] = []

    async def publish() -> list[list[Event]]:
        bus = Bus(lambda event, at_s: read.append(event))
        bus.drain_by(asyncio.get_running_loop().call_soon)
        seen = []
        bus.publish(numbered(1))
        bus.publish(numbered(2))
        seen.append(list(read))
        await asyncio.sleep(0)
        seen.append(list(read))
        return seen

    assert asyncio.run(publish()) == [[], [numbered(1), numbered(2)]]


def test_reader_gets_the_time_of_publishing() -> None:
    times: list[float] = []
    bus = Bus(lambda event, at_s: times.append(at_s))
    before = time.time()
    bus.publish(StoreLost())
    after = time.time()
    bus.drain()
    assert before <= times[0] <= after


def test_every_reader_gets_every_event_in_order() -> None:
    one: list[Event] = []
    other: list[Event] = []
    bus = Bus(lambda event, at_s: one.append(event), lambda event, at_s: other.append(event))
    for number in range(5):
        bus.publish(numbered(number))
    bus.drain()
    assert one == other == [numbered(number) for number in range(5)]


def test_before_and_after_an_event_loop_drain_reads_everything() -> None:
    read: list[Event] = []
    bus = Bus(lambda event, at_s: read.append(event))
    bus.publish(numbered(1))

    async def serve() -> None:
        bus.drain_by(asyncio.get_running_loop().call_soon)
        await asyncio.sleep(0)
        assert read == [numbered(1)]
        bus.publish(numbered(2))
        bus.drain_by(None)

    asyncio.run(serve())
    bus.publish(numbered(3))
    bus.drain()
    assert read == [numbered(number) for number in (1, 2, 3)]


def test_flood_is_bounded_and_what_is_lost_is_counted() -> None:
    read: list[Event] = []
    bus = Bus(lambda event, at_s: read.append(event))
    for number in range(MOST + 7):
        bus.publish(numbered(number))
    bus.drain()
    assert read == [*map(numbered, range(MOST)), EventsLost(7)]

    bus.publish(StoreLost())
    bus.drain()
    assert read[MOST + 1 :] == [StoreLost()]


def test_slow_reader_takes_a_little_of_each_turn_and_others_have_theirs() -> None:
    def read_slowly(event: Event, at_s: float) -> None:
        read.append(event)
        until_s = time.monotonic() + TURN_S
        while time.monotonic() < until_s:
            pass

    read: list[Event] = []

    async def publish() -> list[int]:
        bus = Bus(read_slowly)
        bus.drain_by(asyncio.get_running_loop().call_soon)
        for number in range(3):
            bus.publish(numbered(number))
        seen = []
        for _ in range(4):
            await asyncio.sleep(0)
            seen.append(len(read))
        return seen

    assert asyncio.run(publish()) == [1, 2, 3, 3]


def test_reader_that_fails_is_told_and_gets_the_next_event_and_others_get_all() -> None:
    def fail(event: Event, at_s: float) -> None:
        failing.append(event)
        if not isinstance(event, Stopping):
            raise ValueError("no words")

    failing: list[Event] = []
    read: list[Event] = []
    bus = Bus(fail, lambda event, at_s: read.append(event))
    bus.publish(StoreLost())
    bus.publish(Stopping("SIGTERM", vms_stay=False))
    bus.drain()
    failed = ReaderFailed("StoreLost", "ValueError: no words")
    assert read == failing == [StoreLost(), Stopping("SIGTERM", vms_stay=False), failed]


def test_event_published_by_a_reader_is_read_too() -> None:
    read: list[Event] = []
    publish: list[Callable[[Event], None]] = []

    def answer(event: Event, at_s: float) -> None:
        read.append(event)
        if event == numbered(1):
            publish[0](numbered(2))

    bus = Bus(answer)
    publish.append(bus.publish)
    bus.publish(numbered(1))
    bus.drain()
    assert read == [numbered(1), numbered(2)]


def test_reader_that_comes_later_gets_what_was_not_delivered_yet_and_all_later_events() -> None:
    first: list[Event] = []
    later: list[Event] = []
    bus = Bus(lambda event, at_s: first.append(event))
    bus.publish(numbered(1))
    bus.drain()
    bus.publish(numbered(2))
    bus.read_by(lambda event, at_s: later.append(event))
    bus.publish(numbered(3))
    bus.drain()
    assert first == [numbered(1), numbered(2), numbered(3)]
    assert later == [numbered(2), numbered(3)]
