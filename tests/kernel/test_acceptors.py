"""Connections that wait at many sockets at once, perhaps all of one user's."""

import asyncio
import socket
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from time import monotonic
from typing import cast

import pytest

from balloon_daemon.config.model import Config
from balloon_daemon.config.vms import Kind, VmConfig
from balloon_daemon.events import AlreadyConnected, Event
from balloon_daemon.guests.jailed import peers as peers_module
from balloon_daemon.guests.jailed.acceptor import Acceptor, OwnSocket
from balloon_daemon.guests.jailed.closing import Closer
from balloon_daemon.guests.jailed.forks import Forks
from balloon_daemon.guests.jailed.listener import VhostUserGuests
from balloon_daemon.guests.jailed.listening import listen
from balloon_daemon.guests.jailed.peers import Peer, Peers
from balloon_daemon.guests.jailed.session import Session, Shared
from balloon_daemon.guests.jailed.turns import ACCEPTING, ACCEPTING_AT_ONCE_S, OWED_S
from balloon_daemon.guests.seam import Guest, Report
from balloon_daemon.handover.store import NoStore
from balloon_daemon.sizing.vm_settings import SEED, VmSettings
from balloon_daemon.units import VmId
from tests.fakes.asked_template import AskedTemplate
from tests.harness.faults import fault
from tests.harness.waiting import HANG_S

MANY = 40


def own_socket(folder: Path, name: str) -> OwnSocket:
    """A socket for one VM; "": for any number of VMs."""
    path = folder / f"{name or 'main'}.sock"
    return OwnSocket(VmConfig(name, Kind.VHOST_USER, str(path), SEED), listen(path))


def connected(path: str, stack: ExitStack) -> None:
    """Connects to a socket; the connection lasts until ``stack`` is closed."""
    vmm = stack.enter_context(socket.socket(socket.AF_UNIX))
    vmm.connect(path)


@fault("one user has much to say, over however many connections")
def test_connections_at_many_sockets_are_accepted_for_a_moment_in_each_turn(
    tmp_path: Path,
) -> None:
    accepted: list[int] = []
    turn = 0

    async def scene(stack: ExitStack) -> None:
        loop = asyncio.get_running_loop()
        closer = Closer(loop)

        def accept(acceptor: Acceptor) -> float:
            stack.enter_context(acceptor.listener.sock.accept()[0])
            accepted.append(turn)
            until_s = monotonic() + 0.002  # longer than a turn
            while monotonic() < until_s:
                pass
            return 1000.0

        def count_turn() -> None:
            nonlocal turn
            turn += 1
            if len(accepted) < MANY:
                loop.call_soon(count_turn)

        for number in range(MANY):
            own = own_socket(tmp_path, f"vm{number}")
            connected(own.vm.address, stack)
            acceptor = Acceptor(own, cast(Shared, None))
            acceptor.begin(accept)
            stack.callback(acceptor.stop, closer, leaving=True)
        count_turn()
        async with asyncio.timeout(HANG_S):
            while len(accepted) < MANY:
                await asyncio.sleep(0)

    async def whole() -> None:
        with ExitStack() as stack:
            await scene(stack)

    asyncio.run(whole())
    assert max(Counter(accepted).values()) <= 2


class Host:
    """Takes the place of the controller: serves the VMs that connect. Implements
    ``VmRegistry``."""

    def __init__(self) -> None:
        self.published: list[Event] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.sessions: list[Session] = []

    def next_vm(self, name: str = "") -> VmId:
        return VmId(len(self.sessions) + 1, name or "x")

    def add(self, guest: Guest, settings: VmSettings = SEED, kind: str = "") -> None:
        assert isinstance(guest, Session)
        self.sessions.append(guest)

    def report(self, vm: VmId, report: Report) -> None:
        pass

    def serve(self, guest: Guest) -> None:
        self.tasks.append(asyncio.get_running_loop().create_task(guest.serve()))

    def change(self, vm: VmId, settings: VmSettings) -> None:
        pass

    def dismiss(self, vm: VmId) -> None:
        pass


@fault("one user has much to say, over however many connections")
def test_user_who_connects_over_and_over_keeps_its_vms_sockets_waiting_and_not_the_main_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Peer, "rest_after_accept", lambda _peer, spent_s: 1000.0 + spent_s)

    async def scene(stack: ExitStack) -> dict[str, bool]:
        host, loop = Host(), asyncio.get_running_loop()
        own = [own_socket(tmp_path, name) for name in ("", "refused", "served")]
        guests = VhostUserGuests(
            Config(socket=tmp_path / "main.sock"),
            None,
            Forks(AskedTemplate(lambda *_: 0)),
            own,
            NoStore(),
            host.published.append,
        )
        guests.start(host)
        refused = own[1].vm.address
        connected(refused, stack)
        async with asyncio.timeout(HANG_S):
            while not host.sessions:
                await asyncio.sleep(0.001)
            acceptor = guests._acceptors[refused]
            assert acceptor._later is not None
            acceptor._later.cancel()
            acceptor._watch()
            for each in own:
                connected(each.vm.address, stack)
            while len(host.sessions) < 3 or not host.published[-1:]:
                await asyncio.sleep(0.001)
            while not any(isinstance(event, AlreadyConnected) for event in host.published):
                await asyncio.sleep(0.001)
        rests = {
            name.partition(".")[0]: later is not None and later.when() > loop.time() + 500
            for name, later in (
                (Path(path).name, acceptor._later) for path, acceptor in guests._acceptors.items()
            )
        }
        guests.stop(leaving=True)
        for task in host.tasks:
            task.cancel()
        await asyncio.wait(host.tasks)
        return rests

    async def whole() -> dict[str, bool]:
        with ExitStack() as stack:
            return await scene(stack)

    assert asyncio.run(whole()) == {"main": False, "refused": True, "served": True}


@fault("one user has much to say, over however many connections")
def test_accepting_connections_of_a_user_takes_a_part_of_the_time_and_no_socket_rests_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock_s = [1000.0]
    monkeypatch.setattr(peers_module, "now_s", lambda: clock_s[0])
    all_users = Peers(1000)
    one, other = Peer(1, all_users), Peer(2, all_users)
    again_s, spent_s = [1000.0] * MANY, 0.0
    while clock_s[0] < 1100.0:
        clock_s[0] += 0.01
        for number, at_s in enumerate(again_s):
            if at_s <= clock_s[0]:
                spent_s += 0.001
                rest_s = one.rest_after_accept(0.001)
                assert rest_s <= 1.001 * OWED_S / ACCEPTING
                again_s[number] = clock_s[0] + rest_s
        assert other.rest_after_accept(0.0) == 0.0
    # Beyond the share one connection at each socket is accepted at most: a connection's user is
    # known only once it is accepted.
    assert spent_s <= 100 * ACCEPTING + ACCEPTING_AT_ONCE_S + OWED_S + MANY * 0.001
