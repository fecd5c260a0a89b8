"""How much of what monitors send is read in a second: all monitors of one user share a part."""

import asyncio
from itertools import pairwise

import pytest

from balloon_daemon.guests.driven import in_turn
from balloon_daemon.guests.driven.qmp_wire import (
    _READ_BYTES,
    LEAST_BYTES_PER_S,
    MAX_BYTES_OF_A_USER_PER_S,
    MAX_BYTES_PER_S,
    Event,
    Monitor,
)
from tests.harness.faults import fault

STAMP = b'{"seconds": 1, "microseconds": 2}'
EVENT = b'{"event": "E", "data": "%b", "timestamp": %b}\n' % (b"x" * 1000, STAMP)
HOSTILE, OTHER = 1000, 1001


class Wire(asyncio.Transport):
    """A connection that always has something to read, until nobody reads any more."""

    is_read = True

    def pause_reading(self) -> None:
        self.is_read = False

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
            while not all(flood.events for flood in floods):
                await asyncio.sleep(0)
        finally:
            for flood in floods:
                flood.end()
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


def test_what_monitors_send_at_once_is_parsed_a_little_in_each_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(in_turn, "TURN_S", 0.0)

    async def parsed_in_turns() -> list[int]:
        floods = [Flood(HOSTILE) for _ in range(20)]
        for flood in floods:
            flood.bytes_read()
        counts = [0]
        while not all(flood.events for flood in floods):
            counts.append(sum(len(flood.events) for flood in floods))
            await asyncio.sleep(0)
        for flood in floods:
            flood.end()
        return [after - before for before, after in pairwise(counts)]

    counts = asyncio.run(parsed_in_turns())
    assert max(counts) <= 1 + _READ_BYTES // len(EVENT)
