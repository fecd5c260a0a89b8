import asyncio
import logging
import os
import socket
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from typing import Any

import pytest

from balloon_daemon.controller import peers as module
from balloon_daemon.controller.peers import (
    EACH,
    FIRST_LINES,
    FIRST_LINES_A_SECOND,
    LINES,
    MAX_CONNECTIONS,
    MODEST,
    OURS,
    YOUNG_S,
    Peer,
    Peers,
)
from balloon_daemon.handover.room import SHARE, STATES
from balloon_daemon.linux.closing import MAX_DEBT, Closer, ForeignFds
from balloon_daemon.log import LOGGER, EventLog
from balloon_daemon.vhost_user.connection import Connection

LIMIT = 1000
"""Of which one user may have 750, and all 875."""

Lines = Callable[[], list[str]]


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Lines:
    monkeypatch.setattr(LOGGER, "propagate", True)
    caplog.set_level(logging.INFO)
    return lambda: [record.getMessage() for record in caplog.records]


class Room:
    """Connections of pretended users."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.peers = Peers(limit)
        self.closer = Closer(lambda _delay_s, _callback: None)
        self._stack = ExitStack()
        self.log = EventLog()

    def connection(self) -> Connection:
        theirs, ours = socket.socketpair()
        self._stack.enter_context(theirs)
        connection = Connection(ours, ForeignFds(self.closer))
        self._stack.callback(connection.close)
        return connection

    def peer(self, uid: int, connections: int) -> Peer:
        peer = Peer(uid, self.peers)
        self.peers._peers[uid] = peer
        for _ in range(connections):
            peer.join()
            self._stack.callback(peer.leave)
        return peer

    def refuses(self, peer: Peer) -> bool:
        return self.peers.refuses(peer, self.log)

    def close(self) -> None:
        self._stack.close()
        for child in (*(work.child for work in self.closer._working), *self.closer._idle):
            child.end()


Scene = Callable[[Room], Coroutine[Any, Any, None]]


def play(scene: Scene, limit: int = LIMIT) -> None:
    async def whole() -> None:
        room = Room(limit)
        try:
            await scene(room)
        finally:
            room.close()

    asyncio.run(whole())


def test_user_is_whom_the_kernel_names() -> None:
    async def scene(room: Room) -> None:
        one, other = room.connection(), room.connection()
        assert room.peers.of(one) is room.peers.of(other)
        assert room.peers.of(one).uid == os.geteuid()

    play(scene)


def test_user_with_three_quarters_of_the_descriptors_has_no_further_connection(
    lines: Lines,
) -> None:
    async def scene(room: Room) -> None:
        greedy, modest = room.peer(1, 750 // EACH), room.peer(2, 1)
        assert room.refuses(greedy)
        assert not room.refuses(modest)

    play(scene)
    assert lines() == [
        "a connection of user 1 is refused: it takes 720 descriptors, of 750 at most; allow more "
        "(ulimit -n, LimitNOFILE=)"
    ]


def test_all_users_together_leave_an_eighth_of_the_descriptors(lines: Lines) -> None:
    async def scene(room: Room) -> None:
        room.peer(1, 750 // EACH)
        second = room.peer(2, (875 - 720) // EACH)
        assert room.refuses(second)
        assert room.refuses(room.peer(3, 0))

    play(scene)
    assert lines()[-1] == (
        "a connection of user 3 is refused: all VMs together take 840 descriptors, of 875 at "
        "most; allow more (ulimit -n, LimitNOFILE=)"
    )


def test_connections_are_bounded_where_descriptors_are_not(lines: Lines) -> None:
    async def scene(room: Room) -> None:
        greedy = room.peer(1, MAX_CONNECTIONS * 3 // 4)
        other = room.peer(2, MAX_CONNECTIONS // 4 - 1)
        assert room.refuses(greedy)
        assert not room.refuses(other)
        other.join()
        assert room.refuses(other)
        other.leave()

    play(scene, 1 << 30)
    assert lines() == [
        "a connection of user 1 is refused: it has 768, as many as one user may have",
        "a connection of user 2 is refused: there are 1024, as many as there may be",
    ]


def test_descriptors_that_wait_for_their_close_count_and_are_named(lines: Lines) -> None:
    async def scene(room: Room) -> None:
        peer = room.peer(1, 1)
        peer.account.waiting = 750 - EACH
        assert room.refuses(peer)

    play(scene)
    assert "(710 of them wait for a close that does not end), of 750 at most" in lines()[0]


def test_what_a_vmm_sends_counts_until_it_is_closed() -> None:
    async def scene(room: Room) -> None:
        connection = room.connection()
        peer = room.peers.of(connection)
        peer.join()
        fds = [connection.foreign.own(os.eventfd(0)) for _ in range(EACH)]
        assert peer.descriptors == OURS + 2 * EACH
        for fd in fds:
            fd.close()
        assert peer.descriptors == EACH + EACH
        connection.let_go()
        while not room.closer._free_children():
            await asyncio.sleep(0.001)
        assert peer.descriptors == EACH
        peer.leave()
        assert peer.descriptors == 0

    play(scene)


def test_connection_that_takes_as_much_as_most_is_sent_descriptors_all_the_same() -> None:
    async def scene(room: Room) -> None:
        peer = room.peer(1, 2)
        peer.account.waiting = 750
        modest, reset, greedy, debtor = (ForeignFds(room.closer) for _ in range(4))
        reset.waiting, greedy.held, debtor.waiting = MODEST, MODEST + 1, MODEST + 1
        answers = [peer.may_receive(foreign) for foreign in (modest, reset, greedy, debtor)]
        assert answers == [True, True, False, False]
        # Not beyond what all may have together: the rest is our own.
        peer.account.waiting = 875
        assert not peer.may_receive(modest)

    play(scene)


def test_another_user_may_be_sent_descriptors_whatever_one_takes() -> None:
    async def scene(room: Room) -> None:
        room.peer(1, 1).account.waiting = 2 * LIMIT
        assert room.peer(2, 1).may_receive(ForeignFds(room.closer))

    play(scene)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time by which lines are counted, in seconds."""
    now = [0.0]
    monkeypatch.setattr(module, "now_s", lambda: now[0])
    return now


def test_lines_on_new_connections_of_a_user_are_limited_together(
    clock: list[float], lines: Lines
) -> None:
    async def scene(room: Room) -> None:
        peer, other = room.peer(1, 0), room.peer(2, 0)
        for _ in range(FIRST_LINES + 7):
            peer.log(EventLog()).info("vmm", "said")
        other.log(EventLog()).info("vmm", "another user's")
        assert lines()[FIRST_LINES:] == ["another user's"]

        clock[0] += 1 / FIRST_LINES_A_SECOND
        peer.log(EventLog()).bind(vm="vm9").info("vmm", "said")

    play(scene)
    assert lines()[-1] == "said (7 more lines on VMs of this user were left out)"


def test_lines_on_older_connections_do_not_suffer_from_new_ones(
    clock: list[float], lines: Lines
) -> None:
    async def scene(room: Room) -> None:
        peer = room.peer(1, 0)
        old = peer.log(EventLog())
        clock[0] += YOUNG_S
        for _ in range(FIRST_LINES + 1):
            peer.log(EventLog()).info("vmm", "said")
        old.info("vmm", "an old one's")

    play(scene)
    assert lines()[-1].startswith("an old one's")
    assert len(lines()) == FIRST_LINES + 1


def test_all_lines_of_a_user_are_limited_too(clock: list[float], lines: Lines) -> None:
    async def scene(room: Room) -> None:
        log = room.peer(1, 0).log(EventLog())
        clock[0] += YOUNG_S
        for _ in range(LINES + 1):
            log.info("vmm", "said")

    play(scene)
    assert len(lines()) == LINES


def test_descriptors_that_nobody_has_let_go_of_yet_count() -> None:
    async def scene(room: Room) -> None:
        connection = room.connection()
        peer = room.peers.of(connection)
        connection.foreign.drop(os.eventfd(0))
        assert peer.account.debt == 1
        connection.let_go()
        assert peer.account.debt == 1
        assert len(room.closer._working) == 1

    play(scene)


def test_user_in_debt_is_refused_and_sent_nothing_more(lines: Lines) -> None:
    async def scene(room: Room) -> None:
        peer = room.peer(1, 2)
        modest, debtor = ForeignFds(room.closer), ForeignFds(room.closer)
        debtor.waiting = 1
        peer.account.parked = MAX_DEBT - 1
        assert not room.refuses(peer)
        assert peer.may_receive(debtor)
        peer.account.waiting = 1
        assert room.refuses(peer)
        assert not peer.may_receive(debtor)
        # A VM that was there can be reset, but what it gives up waits for its close too.
        assert peer.may_receive(modest)
        peer.account.parked = 2 * MAX_DEBT
        assert not peer.may_receive(modest)

    play(scene, 1 << 20)
    assert lines() == [
        "a connection of user 1 is refused: 1024 descriptors wait for a close that does not end, "
        "1024 may"
    ]


def test_user_with_three_quarters_of_the_store_leaves_the_rest_to_others(lines: Lines) -> None:
    async def scene(room: Room) -> None:
        capacity = 1000
        most = capacity * 3 // 4 // (SHARE + STATES)
        greedy = room.peer(1, most - 1)
        assert not room.peers.keeps_no_more_of(greedy, capacity, room.log)
        greedy.join()
        assert room.peers.keeps_no_more_of(greedy, capacity, room.log)
        assert not room.peers.keeps_no_more_of(room.peer(2, 0), capacity, room.log)
        greedy.leave()

    play(scene)
    assert lines() == ["is not kept for a later balloond: user 1 has 11 VMs, its share"]
