"""States that can wait: one user's VMs keep no other user's waiting, nor the store busy."""

import asyncio
import heapq
import os
import socket
from contextlib import ExitStack
from functools import partial

import pytest

from balloon_daemon.guests.jailed.saver import SAVE_SOON_S, GuestSaver, Snapshot
from balloon_daemon.handover.journal import Journal
from balloon_daemon.handover.pacing import LATEST_S, STATES_A_SECOND, Pacing
from balloon_daemon.handover.store import MANY_WAITING, SocketStore
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.units import VmId
from balloon_daemon.vhost_user.backend import Backend
from balloon_daemon.vhost_user.memory_table import MemoryTable
from tests.fakes.counted_fd import inspect
from tests.harness.faults import fault

MANY = 40
"""VMs of one user; another user has one, which comes last."""


class Clock:
    """A clock that is set by hand."""

    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_few_vms_have_each_state_stored_as_soon_as_alone() -> None:
    pacing = Pacing(clock := Clock())
    for _ in range(100):
        waits = [pacing.wait_s(1, SAVE_SOON_S) for _ in range(10)]
        assert waits[0] == pytest.approx(SAVE_SOON_S)
        assert max(waits) < 2 * SAVE_SOON_S
        clock.now_s += max(waits)


@fault("one user has much to say, over however many connections")
def test_all_vms_that_a_user_may_have_are_stored_at_a_bounded_rate_and_none_waits_long() -> None:
    pacing = Pacing(clock := Clock())
    vms = [(clock.now_s, number) for number in range(768)]
    stored, until_s = 0, clock.now_s + 60
    while vms[0][0] < until_s:
        clock.now_s, number = heapq.heappop(vms)
        wait_s = pacing.wait_s(1, SAVE_SOON_S)
        assert 0.99 * SAVE_SOON_S < wait_s < 1.01 * LATEST_S
        stored += 1
        heapq.heappush(vms, (clock.now_s + wait_s, number))
    assert stored < 60 * 2 * STATES_A_SECOND + len(vms)


def test_user_of_whom_nothing_waits_is_forgotten() -> None:
    pacing = Pacing(clock := Clock())
    for user in range(10_000):
        pacing.wait_s(user, SAVE_SOON_S)
        clock.now_s += 1
    assert len(pacing._next_s) < 3


def names_of(store: socket.socket) -> list[str]:
    """The names under which descriptors were put into a store since the last call."""
    names: list[str] = []
    while True:
        try:
            message, fds, _, _ = socket.recv_fds(store, 4096, 8)
        except BlockingIOError:
            return names
        for fd in fds:
            os.close(fd)
        words = dict(line.partition("=")[::2] for line in message.decode().split("\n"))
        if words.get("FDSTORE") == "1":
            names.append(words["FDNAME"])


@fault("one user has much to say, over however many connections")
def test_state_of_another_users_vm_is_stored_before_those_of_many_vms_of_one() -> None:
    async def scene() -> list[str]:
        theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setblocking(False)
        store = SocketStore(ours, {}, capacity=10_000, is_keeper=False)
        states: list[str] = []
        with ExitStack() as stack:
            stack.callback(theirs.close)
            stack.callback(store.close)
            savers = []
            for number in range(1, MANY + 2):
                backend, connection = Backend(MemoryTable(inspect)), OwnedFd(os.eventfd(0))
                saver = GuestSaver(store, VmId(number, "x"), Journal.create("test"))
                saver.set_user(2 if number > MANY else 1)
                save = partial(saver.save, Snapshot(1, None, backend, connection, None))
                saver.when_not_kept(save)
                save()
                names_of(theirs)
                savers.append(saver)
                for each in (saver, connection):
                    stack.callback(each.close)
            for saver in savers:
                saver.save_soon()
            while len(states) < len(savers):
                await asyncio.sleep(0.001)
                states += [name for name in names_of(theirs) if ".state-2" in name]
        return states

    states = asyncio.run(scene())
    assert states.index(f"vm{MANY + 1}.state-2") < 3


def test_store_is_behind_for_the_user_of_whom_much_is_queued_and_for_no_other() -> None:
    async def scene() -> None:
        theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        store = SocketStore(ours, {}, capacity=10_000, is_keeper=False)
        with theirs:
            for group, user in (("vm1", 1), ("vm2", 1), ("vm3", 2)):
                store.set_user(group, user)
            while store.has_all_of("vm1"):
                store.remove("vm1.1")
            for _ in range(MANY_WAITING):
                store.remove("vm1.1")
            store.remove("vm3.1")
            assert [store.is_behind(group) for group in ("vm1", "vm2", "vm3")] == [1, 1, 0]
            assert [store.is_behind_with(group) for group in ("vm1", "vm2", "vm3")] == [1, 0, 0]
        store.close()

    asyncio.run(scene())
