"""How much of what VMMs send is parsed at once: all other work has its turn meanwhile."""

import asyncio
from collections.abc import Awaitable, Callable
from itertools import pairwise

import pytest

from balloon_daemon.guests.driven import parsing, qmp_wire
from balloon_daemon.guests.driven.http_answer import MAX_BODY_BYTES
from balloon_daemon.guests.driven.parsing import BYTES_AT_ONCE, BYTES_PER_S, Turns
from balloon_daemon.guests.driven.qmp_wire import MAX_EVENT_BYTES, Monitor
from tests.fakes.quick_loop import run_quickly
from tests.harness.faults import fault
from tests.harness.waiting import HANG_S

HOSTILE, OTHER = 1003, 1004
_STAMP = b'"timestamp": {"seconds": 1, "microseconds": 2}'
_HEAD = b'{"event": "%b", %b, "data": "'
MOST_AT_ONCE = 1 + BYTES_AT_ONCE // MAX_EVENT_BYTES
"""How many lines are parsed at once: the last one is begun with little room, and parsed whole."""


class Wire(asyncio.Transport):
    """A connection, of which it is known whether it is read."""

    _is_read = True

    def reads(self) -> bool:
        return self._is_read

    def pause_reading(self) -> None:
        self._is_read = False

    def resume_reading(self) -> None:
        self._is_read = True

    def abort(self) -> None:
        pass


class Peers:
    """Monitors that send; ``heard`` has the names of their events, in order."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self._monitors: list[Monitor] = []

    def add(self, user: int) -> tuple[Monitor, Wire]:
        monitor, wire = Monitor(lambda event: self.heard.append(event.name), user), Wire()
        monitor.connection_made(wire)
        feed(monitor, b'{"QMP": {}}\n')
        self._monitors.append(monitor)
        return monitor, wire

    def end(self) -> None:
        for monitor in self._monitors:
            monitor.connection_lost(None)


def event(name: str, n_bytes: int = MAX_EVENT_BYTES) -> bytes:
    """An event's line of so many bytes, without its end."""
    head = _HEAD % (name.encode(), _STAMP)
    return head + b"x" * (n_bytes - len(head) - 2) + b'"}\n'


def feed(monitor: Monitor, content: bytes) -> None:
    while content:
        buffer = monitor.get_buffer(-1)
        part, content = content[: len(buffer)], content[len(buffer) :]
        buffer[: len(part)] = part
        monitor.buffer_updated(len(part))


def play(scene: Callable[[Peers], Awaitable[None]]) -> None:
    """Plays a scene in a loop whose time passes only while the scene waits."""

    async def run() -> None:
        peers = Peers()
        try:
            await scene(peers)
        finally:
            peers.end()

    run_quickly(run())


@fault("a QEMU monitor hangs, sends garbage")
def test_lines_that_end_at_the_same_moment_are_parsed_a_part_at_a_time() -> None:
    async def scene(peers: Peers) -> None:
        monitors = [peers.add(HOSTILE)[0] for _ in range(32)]
        for number, monitor in enumerate(monitors):
            feed(monitor, event(str(number)))
        assert 0 < len(peers.heard) <= MOST_AT_ONCE
        before = len(peers.heard)
        await asyncio.sleep(MAX_EVENT_BYTES / BYTES_PER_S)
        assert before < len(peers.heard) <= before + 2
        await asyncio.sleep(32 * MAX_EVENT_BYTES / BYTES_PER_S)
        assert peers.heard == [str(number) for number in range(32)]

    play(scene)


@fault("a QEMU monitor hangs, sends garbage")
def test_monitor_waits_behind_no_more_than_one_line_of_each_other_user() -> None:
    async def scene(peers: Peers) -> None:
        for _ in range(32):
            feed(peers.add(HOSTILE)[0], event("hostile"))
        feed(peers.add(OTHER)[0], event("other"))
        assert "other" not in peers.heard
        await asyncio.sleep(1)
        assert peers.heard.index("other") <= MOST_AT_ONCE + 1

    play(scene)


def test_monitor_is_not_read_while_its_lines_wait_and_has_them_in_order() -> None:
    async def scene(peers: Peers) -> None:
        feed(peers.add(OTHER)[0], event("a", MAX_EVENT_BYTES) * MOST_AT_ONCE)
        monitor, wire = peers.add(HOSTILE)
        assert not wire.reads()
        await asyncio.sleep(1)
        assert wire.reads()
        heard = len(peers.heard)
        feed(monitor, b"".join(event(str(number), 1000) for number in range(100)))
        assert not wire.reads()
        await asyncio.sleep(1)
        assert wire.reads()
        assert peers.heard[heard:] == [str(number) for number in range(100)]

    play(scene)


@fault("the VMM of a driven VM hangs, sends garbage")
def test_large_answers_are_parsed_one_after_the_other() -> None:
    async def run() -> list[float]:
        loop, turns, at_s = asyncio.get_running_loop(), Turns(), list[float]()

        async def parse() -> None:
            await turns.room(HOSTILE, MAX_BODY_BYTES)
            at_s.append(loop.time())

        await asyncio.gather(*(parse() for _ in range(8)))
        return at_s

    at_s = run_quickly(run())
    least_s = (MAX_BODY_BYTES - BYTES_AT_ONCE) / BYTES_PER_S
    assert len(at_s) == 8
    assert all(later - earlier >= least_s for earlier, later in pairwise(at_s))


@fault("the VMM of a driven VM hangs, sends garbage")
def test_small_answer_waits_behind_no_more_than_one_large_one_of_another_user() -> None:
    async def run() -> list[float]:
        loop, turns, waited_s = asyncio.get_running_loop(), Turns(), list[float]()

        async def answer_without_end() -> None:
            while True:
                await turns.room(HOSTILE, MAX_BODY_BYTES)

        hostile = [loop.create_task(answer_without_end()) for _ in range(8)]
        for number in range(8):
            await asyncio.sleep(number * 0.01)  # At each stage of a large answer.
            began_s = loop.time()
            await asyncio.wait_for(turns.room(OTHER, 100), HANG_S)
            waited_s.append(loop.time() - began_s)
        for task in hostile:
            task.cancel()
        return waited_s

    # Longest behind the rest of the answer that is parsed, and one more.
    assert max(run_quickly(run())) <= 2.1 * MAX_BODY_BYTES / BYTES_PER_S


def test_answer_without_a_body_waits_for_nobody() -> None:
    async def run() -> float:
        loop, turns = asyncio.get_running_loop(), Turns()
        large = [loop.create_task(turns.room(HOSTILE, MAX_BODY_BYTES)) for _ in range(3)]
        await asyncio.sleep(0)
        began_s = loop.time()
        await turns.room(OTHER, 0)
        waited_s = loop.time() - began_s
        await asyncio.gather(*large)
        return waited_s

    assert run_quickly(run()) == 0.0


@fault("a QEMU monitor hangs, sends garbage")
def test_line_waits_behind_no_more_than_one_large_answer_of_another_user(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    turns = Turns()
    monkeypatch.setattr(parsing, "TURNS", turns)
    monkeypatch.setattr(qmp_wire, "TURNS", turns)

    async def scene(peers: Peers) -> None:
        async def answer_without_end() -> None:
            while True:
                await turns.room(HOSTILE, MAX_BODY_BYTES)

        monitor, _ = peers.add(OTHER)
        tasks = [asyncio.create_task(answer_without_end()) for _ in range(8)]
        await asyncio.sleep(1)
        for number in range(8):
            feed(monitor, event(str(number), 100))
            await asyncio.sleep(2.1 * MAX_BODY_BYTES / BYTES_PER_S)
            assert peers.heard == [str(each) for each in range(number + 1)]
        for task in tasks:
            task.cancel()

    play(scene)


def test_monitor_that_has_ended_is_parsed_no_further() -> None:
    async def scene(peers: Peers) -> None:
        feed(peers.add(OTHER)[0], event("a", MAX_EVENT_BYTES) * MOST_AT_ONCE)
        monitor, _ = peers.add(HOSTILE)
        feed(monitor, event("late", 100))
        monitor.close()
        await asyncio.sleep(1)
        assert "late" not in peers.heard

    play(scene)
