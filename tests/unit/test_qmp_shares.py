"""How much of what monitors send is read in a second and in a turn: one user's share a part."""

import asyncio
import math

import pytest

from balloon_daemon.guests.driven import parsing, reading
from balloon_daemon.guests.driven.control import ControlError
from balloon_daemon.guests.driven.discovery import MOST_OF_ONE_USER
from balloon_daemon.guests.driven.http import HttpConnection
from balloon_daemon.guests.driven.http_answer import MAX_BODY_BYTES
from balloon_daemon.guests.driven.qmp_wire import Event, Monitor
from balloon_daemon.guests.driven.reading import TURN_S, Reading
from balloon_daemon.guests.driven.reading_share import (
    BYTE_S,
    LEAST_BYTES_PER_S,
    MAX_BYTES_OF_A_USER_PER_S,
    MAX_BYTES_PER_S,
    READ_BYTES,
    ReadingShare,
)
from tests.fakes.quick_loop import run_quickly
from tests.harness.faults import fault

STAMP = b'{"seconds": 1, "microseconds": 2}'
EVENT = b'{"event": "E", "data": "%b", "timestamp": %b}\n' % (b"x" * 1000, STAMP)
HOSTILE, OTHER = 1000, 1001


class Wire(asyncio.Transport):
    """A connection that always has something to read, until nobody reads any more."""

    is_read = True

    def pause_reading(self) -> None:
        self.is_read = False

    def resume_reading(self) -> None:
        self.is_read = True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass

    def abort(self) -> None:
        pass


class Flood:
    """A monitor's connection that floods."""

    def __init__(self, user: int) -> None:
        self.events: list[Event] = []
        self._wire = Wire()
        self.monitor = Monitor(self.events.append, user)
        self.monitor.connection_made(self._wire)

    def bytes_read(self) -> int:
        """How many bytes are read before the rest of the second is waited for."""
        read = 0
        while self._wire.is_read:
            buffer = self.monitor.get_buffer(-1)
            size, begun = len(buffer), read % len(EVENT)
            buffer[:] = (EVENT * (2 + size // len(EVENT)))[begun : begun + size]
            self.monitor.buffer_updated(size)
            read += size
        return read

    def end(self) -> None:
        self.monitor.connection_lost(None)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """All is read in one turn, and parsed at once (``test_parsing.py`` has what is not)."""
    monkeypatch.setattr(reading, "TURN_S", math.inf)
    monkeypatch.setattr(parsing, "BYTES_AT_ONCE", 1 << 40)
    monkeypatch.setattr(parsing, "TURNS", parsing.Turns())


def read_of(users: list[int], gone: int = 0) -> list[int]:
    """What is read in one second of a monitor of each of these users.

    Args:
        users: whose monitors flood, all at once.
        gone: how many other monitors of the first user were connected before.
    """

    async def second() -> list[int]:
        for flood in [Flood(users[0]) for _ in range(gone)]:
            flood.end()
        floods = [Flood(user) for user in users]
        try:
            read = [flood.bytes_read() for flood in floods]
        finally:
            for flood in floods:
                flood.end()
        assert all(flood.events for flood in floods)
        return read

    return asyncio.run(second())


@fault("a QEMU monitor hangs, sends garbage")
def test_monitors_of_one_user_that_flood_have_equal_parts_of_that_users_share() -> None:
    *hostile, other = read_of([HOSTILE] * 20 + [OTHER])
    assert sum(hostile) <= MAX_BYTES_OF_A_USER_PER_S
    assert len(set(hostile)) == 1
    assert other == MAX_BYTES_PER_S


def test_part_of_a_monitor_is_larger_once_others_have_gone() -> None:
    assert read_of([HOSTILE], gone=20)[0] >= MAX_BYTES_PER_S


@fault("a QEMU monitor hangs, sends garbage")
def test_monitors_of_a_user_who_has_very_many_have_no_more_together() -> None:
    sizes = read_of([HOSTILE] * 256)
    assert sum(sizes) <= MAX_BYTES_OF_A_USER_PER_S
    assert min(sizes) >= LEAST_BYTES_PER_S


class SlowReads:
    """Reads that take processor time, of monitors of one user or several.

    Args:
        patch: puts a clock in place of the processor's.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._now_s = 0.0
        patch.setattr(reading, "thread_time", lambda: self._now_s)

    def read(self, wire: ReadingShare | Reading, took_s: float, most: int = 1) -> int:
        """Reads from a monitor that has so many bytes; returns how many were read."""
        n_bytes = min(most, len(wire.buffer()))
        self._now_s += took_s
        return len(wire.take(n_bytes))


@fault("a QEMU monitor hangs, sends garbage")
@pytest.mark.parametrize("took_s", [0.0, 0.0002])
def test_monitors_that_send_a_byte_at_a_time_are_read_for_their_users_part_of_the_time(
    took_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = SlowReads(monkeypatch)
    counted = READ_BYTES + took_s / BYTE_S

    async def in_a_second() -> int:
        monitors = [ReadingShare(HOSTILE, lambda: None) for _ in range(64)]
        count = 0
        for each in monitors:
            while each.has_room:
                reads.read(each, took_s)
                count += 1
        for each in monitors:
            each.end()
        return count

    # The last read of each monitor is begun with little room.
    assert asyncio.run(in_a_second()) <= MAX_BYTES_OF_A_USER_PER_S / counted * 1.01 + 64


def test_monitor_of_a_user_who_has_most_of_them_is_read_for_a_sample_in_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reads = SlowReads(monkeypatch)

    async def scene() -> None:
        monitors = [ReadingShare(OTHER, lambda: None) for _ in range(MOST_OF_ONE_USER)]
        # A byte in each of ten turns in which others' answers come, then its own, one by one.
        for answer_bytes in [1] * 10 + [700, 700, 60, 60, 60, 60]:
            assert reads.read(monitors[0], 0.0, answer_bytes) == answer_bytes
        assert monitors[0].has_room
        for each in monitors:
            each.end()

    asyncio.run(scene())


@fault("a QEMU monitor hangs, sends garbage")
@fault("the VMM of a driven VM hangs, sends garbage")
def test_vmms_of_one_user_are_read_for_a_moment_in_each_turn_and_others_have_theirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reading, "TURN_S", TURN_S)
    reads = SlowReads(monkeypatch)

    async def scene() -> list[list[int]]:
        *hostile, other = [Reading(user) for user in [HOSTILE] * 16 + [OTHER]]
        turns = []
        for _ in range(2):
            turns.append([reads.read(each, TURN_S / 2.5, 1000) for each in [*hostile, other]])
            await asyncio.sleep(0)
        for each in [*hostile, other]:
            each.end()
        return turns

    turn = [1000] * 3 + [1] * 13 + [1000]
    assert asyncio.run(scene()) == [turn, turn]


@fault("the VMM of a driven VM hangs, sends garbage")
def test_http_connections_of_one_user_are_read_for_a_moment_in_each_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reading, "TURN_S", TURN_S)
    clock_s = [0.0]
    monkeypatch.setattr(reading, "thread_time", lambda: clock_s[0])

    async def scene() -> list[int]:
        slow, next_one = HttpConnection("/slow"), HttpConnection("/next")
        for each in (slow, next_one):
            each.connection_made(Wire())
        slow.get_buffer(-1)
        clock_s[0] += TURN_S
        slow.buffer_updated(1)
        sizes = [len(next_one.get_buffer(-1))]
        await asyncio.sleep(0)
        sizes.append(len(next_one.get_buffer(-1)))
        for each in (slow, next_one):
            each.connection_lost(None)
        return sizes

    in_this_turn, in_the_next = asyncio.run(scene())
    assert in_this_turn == 1
    assert in_the_next > 1000


@fault("the VMM of a driven VM hangs, sends garbage")
def test_http_answers_that_come_a_byte_at_a_time_are_read_for_their_users_part_of_the_time() -> (
    None
):
    endless = b"HTTP/1.1 200 OK\r\nX: " + b"x" * 10_000

    async def scene() -> tuple[int, bool]:
        wires = [Wire() for _ in range(64)]
        connections = [HttpConnection("/slow") for _ in wires]
        for each, wire in zip(connections, wires, strict=True):
            each.connection_made(wire)
        asks = [asyncio.ensure_future(each.ask("GET", "/")) for each in connections]
        await asyncio.sleep(0)
        count = 0
        for each, wire in zip(connections, wires, strict=True):
            for byte in endless:
                if not wire.is_read:
                    break
                each.get_buffer(-1)[0] = byte
                each.buffer_updated(1)
                count += 1
        assert not any(wire.is_read for wire in wires)
        await asyncio.sleep(1.5)
        is_read_again = all(wire.is_read for wire in wires)
        for each in connections:
            each.connection_lost(None)
        answers = await asyncio.gather(*asks, return_exceptions=True)
        assert {type(answer) for answer in answers} == {ControlError}
        return count, is_read_again

    count, is_read_again = run_quickly(scene())
    # The last read of each is begun with little room.
    assert count <= MAX_BYTES_OF_A_USER_PER_S / READ_BYTES + 64
    assert is_read_again


def test_large_answer_over_http_is_read_at_once() -> None:
    async def scene() -> bool:
        wire, http = Wire(), HttpConnection("/large")
        http.connection_made(wire)
        ask = asyncio.ensure_future(http.ask("GET", "/"))
        await asyncio.sleep(0)
        body = b'"%b"' % (b"x" * (MAX_BODY_BYTES - 2))
        left = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        while left and wire.is_read:
            buffer = http.get_buffer(-1)
            size = min(len(buffer), len(left))
            buffer[:size], left = left[:size], left[size:]
            http.buffer_updated(size)
        assert left == b""
        assert await ask == (200, "x" * (MAX_BODY_BYTES - 2))
        is_read = wire.is_read
        http.connection_lost(None)
        return is_read

    assert asyncio.run(scene())


def test_second_ends_with_more_to_read_and_not_after_the_monitor_has_ended() -> None:
    async def scene() -> list[str]:
        again: list[str] = []
        stays = ReadingShare(OTHER, lambda: again.append("stays"))
        ends = ReadingShare(OTHER, again.clear)
        for each in (stays, ends):
            while each.has_room:
                each.take(len(each.buffer()))
        ends.end()
        await asyncio.sleep(1.5)
        assert stays.has_room
        stays.end()
        return again

    assert run_quickly(scene()) == ["stays"]
