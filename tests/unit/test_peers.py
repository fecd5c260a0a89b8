import asyncio
import os
import socket
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from typing import Any

import psutil
import pytest

from balloon_daemon.events import ConnectionRefused, Event, Share, StoreShareUsed
from balloon_daemon.guests.jailed import peers
from balloon_daemon.guests.jailed.closing import Closer
from balloon_daemon.guests.jailed.peers import (
    EACH,
    MAX_CONNECTIONS,
    MODEST,
    OURS,
    Peer,
    Peers,
)
from balloon_daemon.handover.room import SHARE, STATES
from balloon_daemon.handover.room import Room as StoreRoom
from balloon_daemon.units import VmId
from balloon_daemon.vhost_user.connection import Connection
from balloon_daemon.vhost_user.foreign_fds import MAX_DEBT, ForeignFds
from tests.harness.faults import fault
from tests.harness.waiting import HANG_S

LIMIT = 1000
"""Of which one user may have 750, and all 875."""


class Room:
    """Connections of pretended users."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.peers = Peers(limit)
        self.closer = Closer(asyncio.get_running_loop())
        self._stack = ExitStack()
        self.published: list[Event] = []

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
        return self.peers.refuses(peer, self.published.append)

    def close(self) -> None:
        self._stack.close()
        for child in psutil.Process().children():
            child.kill()
            os.waitpid(child.pid, 0)


Scene = Callable[[Room], Coroutine[Any, Any, None]]


def play(scene: Scene, limit: int = LIMIT) -> list[Event]:
    """Plays a scene; returns what is published in it."""

    async def whole() -> list[Event]:
        room = Room(limit)
        try:
            await scene(room)
        finally:
            room.close()
        return room.published

    return asyncio.run(whole())


def test_user_is_whom_the_kernel_names() -> None:
    async def scene(room: Room) -> None:
        one, other = room.connection(), room.connection()
        assert room.peers.of(one) is room.peers.of(other)
        assert room.peers.of(one).uid == os.geteuid()

    play(scene)


def test_user_with_three_quarters_of_the_descriptors_has_no_further_connection() -> None:
    async def scene(room: Room) -> None:
        greedy, modest = room.peer(1, 750 // EACH), room.peer(2, 1)
        assert room.refuses(greedy)
        assert not room.refuses(modest)

    assert play(scene) == [ConnectionRefused(1, Share.USERS_DESCRIPTORS, 720, 750)]


@fault("one user's VMMs take more than three quarters of the descriptors")
def test_all_users_together_leave_an_eighth_of_the_descriptors() -> None:
    async def scene(room: Room) -> None:
        room.peer(1, 750 // EACH)
        second = room.peer(2, (875 - 720) // EACH)
        assert room.refuses(second)
        assert room.refuses(room.peer(3, 0))

    assert play(scene)[-1] == ConnectionRefused(3, Share.DESCRIPTORS, 840, 875)


@fault("one user's VMMs take more than three quarters of the descriptors")
def test_connections_are_bounded_where_descriptors_are_not() -> None:
    async def scene(room: Room) -> None:
        greedy = room.peer(1, MAX_CONNECTIONS * 3 // 4)
        other = room.peer(2, MAX_CONNECTIONS // 4 - 1)
        assert room.refuses(greedy)
        assert not room.refuses(other)
        other.join()
        assert room.refuses(other)
        other.leave()

    assert play(scene, 1 << 30) == [
        ConnectionRefused(1, Share.USERS_CONNECTIONS, 768, 768),
        ConnectionRefused(2, Share.CONNECTIONS, 1024, 1024),
    ]


@fault("device cannot die (hangs in the kernel)")
def test_device_that_outlives_its_connection_counts_as_a_connection() -> None:
    async def scene(room: Room) -> None:
        greedy, other = room.peer(1, MAX_CONNECTIONS * 3 // 4 - 1), room.peer(2, 1)
        greedy.hold_hanging(1)
        assert room.refuses(greedy)
        assert not room.refuses(other)
        room.peer(3, MAX_CONNECTIONS // 4 - 1)
        assert room.refuses(other)
        greedy.hold_hanging(-1)
        assert not room.refuses(greedy)

    assert play(scene, 1 << 30) == [
        ConnectionRefused(1, Share.USERS_CONNECTIONS, 768, 768),
        ConnectionRefused(2, Share.CONNECTIONS, 1024, 1024),
    ]


def test_descriptors_that_wait_for_their_close_count_and_are_named() -> None:
    async def scene(room: Room) -> None:
        peer = room.peer(1, 1)
        peer.account.waiting = 750 - EACH
        assert room.refuses(peer)

    (refused,) = play(scene)
    assert refused == ConnectionRefused(1, Share.USERS_DESCRIPTORS, 750, 750, closing=710)


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
        connection.close_dropped()
        async with asyncio.timeout(HANG_S):
            while peer.descriptors != EACH:
                await asyncio.sleep(0)
        peer.leave()
        assert peer.descriptors == 0

    play(scene)


@fault("one user's VMMs take more than three quarters of the descriptors")
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


@fault("more than 1,024 descriptors of one user wait for their close")
def test_descriptors_that_wait_without_a_number_refuse_no_other_user() -> None:
    async def scene(room: Room) -> None:
        # Each connection that is refused may bring another one.
        room.peer(1, 1).account.parked = 2 * LIMIT
        other = room.peer(2, 1)
        assert not room.refuses(other)
        other.account.waiting = other.account.held = 200
        modest = ForeignFds(room.closer)
        modest.waiting = MODEST
        assert other.may_receive(modest)

    assert play(scene) == []


@fault("a user with 65,536 subordinate users connects as each of them")
def test_user_who_has_had_nothing_here_for_long_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scene(room: Room) -> None:
        own = room.peers.of(room.connection())
        room.peer(2, 1)
        room.peer(3, 0).hold_hanging(1)
        room.peer(4, 0).account.held = 1
        room.peer(5, 0).account.parked = 1
        past = range(100, 200)
        for uid in past:
            room.peer(uid, 0)
        # None of them before its shares are saved up again.
        for _ in past:
            assert room.peers.of(room.connection()) is own
        assert len(room.peers._peers) == 5 + len(past)

        monkeypatch.setattr(peers, "FORGOTTEN_AFTER_S", 0.0)
        own.join()
        for _ in past:
            assert room.peers.of(room.connection()) is own
        assert set(room.peers._peers) == {own.uid, 2, 3, 4, 5}
        own.leave()

    play(scene)


@fault("a user with 65,536 subordinate users connects as each of them")
def test_each_connection_has_two_users_looked_at_so_their_number_does_not_grow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scene(room: Room) -> None:
        monkeypatch.setattr(peers, "FORGOTTEN_AFTER_S", 0.0)
        for uid in range(100, 1100):
            room.peer(uid, 0)
            room.peers.of(room.connection()).connections = 1  # It stays.
            assert len(room.peers._peers) <= 3

    play(scene)


@fault("more than 1,024 descriptors of one user wait for their close")
def test_descriptors_that_nobody_has_let_go_of_yet_count() -> None:
    async def scene(room: Room) -> None:
        connection = room.connection()
        peer = room.peers.of(connection)
        connection.foreign.drop(os.eventfd(0))
        assert peer.account.debt == 1
        connection.close_dropped()
        assert peer.account.debt == 1
        assert len(psutil.Process().children()) == 1

    play(scene)


@fault("more than 1,024 descriptors of one user wait for their close")
def test_user_in_debt_is_refused_and_sent_nothing_more() -> None:
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

    assert play(scene, 1 << 20) == [ConnectionRefused(1, Share.CLOSES, MAX_DEBT, MAX_DEBT)]


@fault("one user's VMs want more than three quarters of the store")
def test_user_with_three_quarters_of_the_store_leaves_the_rest_to_others() -> None:
    async def scene(room: Room) -> None:
        stored, capacity = StoreRoom(1000), 1000
        vm, publish = VmId(8, "vm8"), room.published.append
        most = capacity * 3 // 4 // (SHARE + STATES)
        greedy, other = room.peer(1, most), room.peer(2, 0)
        for number in range(most - 1):
            stored.set_user(f"vm{number}", 1)
        assert not room.peers.keeps_no_more_of(greedy, stored, vm, publish)
        stored.set_user(f"vm{most}", 1)
        assert room.peers.keeps_no_more_of(greedy, stored, vm, publish)
        assert not room.peers.keeps_no_more_of(other, stored, vm, publish)

    assert play(scene) == [StoreShareUsed(VmId(8, "vm8"), 1, 11)]
