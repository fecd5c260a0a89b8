"""Who hears of low memory, and when: one watch for all guests."""

import asyncio
from functools import partial

from balloon_daemon.controller.governor import Governor
from balloon_daemon.events import Event
from balloon_daemon.host.low_memory import LowMemoryStatistics
from balloon_daemon.host.watch import MemoryWatch
from balloon_daemon.records.bus import Bus
from balloon_daemon.sizing.balloon_policy import PolicySettings, Reading, Reason
from balloon_daemon.units import GIB, MIB, VmId
from tests.harness.waiting import HANG_S

POLL_S = 3600.0
"""So that what is heard was not heard by a poll."""


def ignore(event: Event) -> None:
    """Nobody reads what this watch publishes."""


class ToldMemory:
    """A source that a test moves."""

    name = "told"
    last_error = ""
    needs_poll = True
    low = False

    def read(self) -> Reading:
        return Reading(10 if self.low else 1000, 100)

    def wait_fd(self) -> None:
        return None

    def acknowledge(self) -> None:
        return None

    def take_notice(self) -> None:
        return None

    def statistics(self) -> LowMemoryStatistics:
        return LowMemoryStatistics()

    def describe(self) -> str:
        return self.name

    def check(self) -> None:
        return None

    def close(self) -> None:
        return None


class Willing:
    """A guest that may be asked for more, and has given nothing."""

    actual_bytes = 0

    def against_more(self, level: int) -> Reason | None:
        return None

    def tell_again(self) -> None:
        return None


def test_whoever_begins_to_listen_looks_for_all_that_listen() -> None:
    # Each look puts the poll off: VMs that listen again in turns, as they do each second under
    # lasting pressure, kept one that had looked in a good moment from ever hearing of it.
    heard: list[str] = []

    async def listen() -> None:
        source = ToldMemory()
        watch = MemoryWatch(source, POLL_S, ignore)
        watch.listen(lambda _: heard.append("first"))
        source.low = True
        watch.listen(lambda _: heard.append("second"))
        watch.close()

    asyncio.run(listen())
    assert sorted(heard) == ["first", "second"]


def test_whoever_is_sent_away_by_another_is_not_told() -> None:
    heard: list[str] = []

    async def listen() -> None:
        source = ToldMemory()
        watch = MemoryWatch(source, POLL_S, ignore)

        def second(_: Reading) -> None:
            heard.append("second")

        def first(_: Reading) -> None:
            heard.append("first")
            watch.ignore(second)

        watch.listen(first)
        watch.listen(second)
        source.low = True
        watch.listen(lambda _: heard.append("third"))
        watch.close()

    asyncio.run(listen())
    assert heard == ["first", "third"]


class FailingMemory(ToldMemory):
    """Low memory, of which the first look by a timer has no memory itself."""

    low = True

    def __init__(self) -> None:
        self.reads = 0

    def read(self) -> Reading:
        self.reads += 1
        if self.reads == 2:
            raise MemoryError
        return super().read()


def test_look_that_fails_is_followed_by_the_next() -> None:
    async def listen() -> list[str]:
        loop = asyncio.get_running_loop()
        failures: list[str] = []
        loop.set_exception_handler(lambda _, context: failures.append(repr(context["exception"])))
        source, heard = FailingMemory(), loop.create_future()

        def listener(_: Reading) -> None:
            if source.reads == 3:
                heard.set_result(None)

        watch = MemoryWatch(source, 0.01, ignore)
        watch.listen(listener)
        await asyncio.wait_for(heard, HANG_S)
        watch.close()
        return failures

    assert asyncio.run(listen()) == ["MemoryError()"]


def test_all_targets_of_one_low_memory_event_leave_before_the_first_line_is_worded() -> None:
    happened: list[str] = []

    def tell(number: int, target_bytes: int) -> None:
        happened.append(f"target {number}: {target_bytes}")

    async def be_low() -> None:
        loop = asyncio.get_running_loop()
        source = ToldMemory()
        bus = Bus(lambda event, at_s: happened.append(type(event).__name__))
        bus.drain_by(loop.call_soon)
        watch = MemoryWatch(source, POLL_S, bus.publish)
        governors = [
            Governor(
                PolicySettings(),
                watch,
                partial(tell, number),
                lambda: None,
                Willing(),
                VmId(number, f"vm{number}"),
                bus.publish,
            )
            for number in (1, 2, 3)
        ]
        for governor in governors:
            governor.start(GIB)
        await asyncio.sleep(0)
        happened.clear()
        source.low = True
        watch.listen(lambda _: None)
        await asyncio.sleep(0)
        for governor in governors:
            governor.halt()
        watch.close()

    asyncio.run(be_low())
    step = 32 * MIB
    targets = [f"target {number}: {step}" for number in (1, 2, 3)]
    assert happened == [*targets, "Decided", "Decided", "Decided"]
