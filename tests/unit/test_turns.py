import asyncio
import socket
from collections.abc import Callable

import pytest

from balloon_daemon.controller import turns
from balloon_daemon.controller.turns import AT_ONCE, LOOK_AT, Turns

CONNECTIONS = AT_ONCE + 3 * LOOK_AT + 1


class Crowd:
    """Connections that have something to say, and never stop.

    Args:
        user: in whose turns they are heard.
    """

    def __init__(self, user: Turns, count: int) -> None:
        self.heard = [0] * count
        self._user = user
        self._pairs = [socket.socketpair() for _ in range(count)]
        for number, (theirs, ours) in enumerate(self._pairs):
            theirs.send(b"x")
            user.watch(ours.fileno(), self._hear(number))

    def _hear(self, number: int) -> Callable[[], None]:
        def hear() -> None:
            self.heard[number] += 1

        return hear

    def close(self) -> None:
        for theirs, ours in self._pairs:
            self._user.unwatch(ours.fileno())
            theirs.close()
            ours.close()


async def turns_of_the_loop(count: int) -> None:
    # Each sleep(0) ends with the loop's next turn, in which it has looked at what is ready.
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def _short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of a turn without any time one message is taken all the same.
    monkeypatch.setattr(turns, "TURN_S", 0.0)


def test_user_with_many_connections_is_heard_no_more_than_one_with_few() -> None:
    async def scene() -> tuple[int, int, int]:
        many, one = Turns(), Turns()
        crowd, single = Crowd(many, CONNECTIONS), Crowd(one, 1)
        await turns_of_the_loop(3 * CONNECTIONS)
        heard = sum(crowd.heard[:AT_ONCE]), sum(crowd.heard[AT_ONCE:]), single.heard[0]
        for each in (crowd, single):
            each.close()
        for user in (many, one):
            user.close()
        return heard

    at_once, in_turns, single = asyncio.run(scene())
    assert abs(in_turns - single) <= 1
    assert abs(at_once - AT_ONCE * single) <= AT_ONCE


def test_connections_of_one_user_are_heard_one_after_the_other() -> None:
    async def scene() -> list[int]:
        user = Turns()
        crowd = Crowd(user, CONNECTIONS)
        await turns_of_the_loop(4 * CONNECTIONS)
        crowd.close()
        user.close()
        return crowd.heard[AT_ONCE:]

    heard = asyncio.run(scene())
    assert min(heard) > 0
    assert max(heard) - min(heard) <= 1


def test_turn_that_was_ended_takes_no_more_before_the_next() -> None:
    async def scene() -> list[int]:
        user, heard = Turns(), []
        pairs = [socket.socketpair() for _ in range(AT_ONCE + 9)]
        turn = 0

        def hear() -> None:
            if not user.over:
                heard.append(turn)
                user.end()

        for theirs, ours in pairs:
            theirs.send(b"x")
            user.watch(ours.fileno(), hear)
        while turn < 30:
            await asyncio.sleep(0)
            turn += 1
        for theirs, ours in pairs:
            user.unwatch(ours.fileno())
            theirs.close()
            ours.close()
        user.close()
        return heard

    heard = asyncio.run(scene())
    assert len(heard) > 20
    assert len(set(heard)) == len(heard)


def test_connection_that_nobody_watches_any_more_is_not_heard() -> None:
    async def scene() -> list[int]:
        user = Turns()
        crowd = Crowd(user, AT_ONCE + 2)
        for _, ours in (crowd._pairs[0], crowd._pairs[AT_ONCE]):
            user.unwatch(ours.fileno())
        await turns_of_the_loop(3)
        crowd.close()
        user.close()
        return crowd.heard

    heard = asyncio.run(scene())
    assert [number for number, times in enumerate(heard) if not times] == [0, AT_ONCE]
