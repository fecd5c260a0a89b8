"""What a VMM's messages are charged to its user, who may have other VMs."""

import asyncio
import os
import socket

import pytest

from balloon_daemon.guests.jailed.inbox import Inbox
from balloon_daemon.guests.jailed.peers import Peer, Peers
from balloon_daemon.guests.jailed.turns import SAVED_S
from balloon_daemon.handover.journal import NoJournal
from balloon_daemon.vhost_user.connection import Connection, Received
from balloon_daemon.vhost_user.driver_state import DriverState
from balloon_daemon.vhost_user.foreign_fds import ForeignFds
from balloon_daemon.vhost_user.known_accesses import KnownAccesses
from balloon_daemon.vhost_user.vring import Vring
from tests.fakes.closes_at_once import closes_at_once
from tests.harness.faults import fault


class AllKnown(KnownAccesses):
    """Answers whatever comes, as if it were an access to the config space like an earlier one."""

    def __init__(self) -> None:
        super().__init__(DriverState(), Vring())

    def answer(self, waiting: bytes) -> tuple[bytes, bool] | None:
        return (waiting, False) if waiting else None

    def access_config(self, received: Received) -> None:
        raise AssertionError("all accesses are known")

    def flush_later(self) -> None:
        raise AssertionError("the socket takes it")


@fault("one user has much to say, over however many connections")
def test_vmm_that_is_gone_when_its_access_is_answered_costs_its_user_no_time() -> None:
    async def scene() -> float:
        peer = Peer(os.getuid(), Peers(1000))
        theirs, ours = socket.socketpair()
        connection = Connection(ours, ForeignFds(closes_at_once()))
        known = AllKnown()
        inbox = Inbox(connection, peer, NoJournal(), known, known, lambda: None)
        inbox.join()
        theirs.sendall(b"GET_CONFIG")
        theirs.close()
        with pytest.raises(BrokenPipeError):
            await inbox.next()
        # What the user's other connections may use now.
        left_s = peer._allowances.in_turns.charge(0.0, asyncio.get_running_loop().time())
        inbox.leave()
        connection.close()
        return left_s

    assert asyncio.run(scene()) > SAVED_S / 2
