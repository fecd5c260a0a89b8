"""What of a guest is in the store, whatever fails on the way there."""

import asyncio
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise

import pytest

from balloon_daemon.guests.jailed import kept as kept_module
from balloon_daemon.guests.jailed import saver as saver_module
from balloon_daemon.guests.jailed.save_schedule import SAVE_SOON_S
from balloon_daemon.guests.jailed.saver import GuestSaver, Snapshot
from balloon_daemon.guests.seam import VmRow
from balloon_daemon.handover.fd_keeper import Keeper
from balloon_daemon.handover.journal import Journal
from balloon_daemon.handover.room import SHARE, STATES, Room
from balloon_daemon.handover.state import MAX_STATE_BYTES, GuestState, SavedMessage, decode_state
from balloon_daemon.handover.store import HasFileno, NoStore, SocketStore
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.linux.memory import create_memfd, read_sealed
from balloon_daemon.units import FrontendAddr, GuestAddr, VmId
from balloon_daemon.vhost_user.backend import Backend
from balloon_daemon.vhost_user.connection import inspect_memory
from balloon_daemon.vhost_user.memory_table import MemoryTable
from balloon_daemon.vhost_user.messages import (
    U64,
    VERSION,
    FrontendRequest,
    Message,
    RegionDescription,
    VringState,
)
from balloon_daemon.vhost_user.replay import replay
from tests.fakes.counted_fd import inspect
from tests.fakes.quick_loop import run_quickly
from tests.fakes.told_backend import ADDR, OFFERED, REGION
from tests.harness.faults import fault
from tests.harness.waiting import HANG_S

VM1 = VmId(1, "web server")
"""Its name is for people: nothing in a store is named by it."""


class RememberingStore(NoStore):
    """Stands for a store: the names that it has, and the newest state's descriptors by number.

    Args:
        capacity: for how many it has room.
    """

    keeps = True
    behind = False

    def is_behind_with(self, group: str) -> bool:
        return self.behind

    def __init__(self, capacity: int = 1000) -> None:
        super().__init__()
        self.room = Room(capacity)
        self.owners: dict[str, Callable[[str, int], None]] = {}
        self.losses, self.stay = 0, list[str]()
        self.names: set[str] = set()
        self.needed: set[int] = set()
        self.full = False
        self.state: GuestState | None = None
        self.inodes: dict[str, int] = {}

    def put(self, name: str, fd: HasFileno, *, vmm: bool = False) -> None:
        if self.full:
            raise OSError(24, os.strerror(24))
        self.names.add(name)
        self.room.put(name)
        self.inodes[name] = os.fstat(fd.fileno()).st_ino
        if ".state-" in name:
            self.state = decode_state(read_sealed(fd.fileno(), MAX_STATE_BYTES))
            self.needed = self.state.jailed.fds()

    def remove(self, name: str) -> None:
        self.names.discard(name)
        self.room.remove(name)

    def on_loss(self, group: str, lost: Callable[[str, int], None] | None) -> None:
        self.owners.pop(group, None)
        if lost is not None:
            self.owners[group] = lost

    def replace(
        self,
        name: str,
        fd: HasFileno,
        gone: Sequence[str],
        *,
        losses: int = 0,
        stay: Sequence[str] | None = None,
    ) -> None:
        self.losses, self.stay = losses, list(stay or ())
        self.put(name, fd)
        for each in gone:
            self.remove(each)


@fault("no room for a descriptor on its way into the store")
def test_descriptor_that_found_no_room_in_the_store_is_put_there_with_the_next_state() -> None:
    store = RememberingStore()
    saver = GuestSaver(store, VM1, Journal.create("test"))
    backend = Backend(MemoryTable(inspect))
    connection = OwnedFd(os.eventfd(0))
    snapshot = Snapshot(1, None, backend, connection, None)
    saver.save(snapshot)
    backend.channel = OwnedFd(os.eventfd(0))

    store.full = True
    with pytest.raises(OSError, match="Too many open files"):
        saver.save(snapshot)
    store.full = False
    saver.save(snapshot)

    assert len(store.needed) == 3
    assert {f"vm1.{number}" for number in store.needed} <= store.names
    saver.close()
    backend.close()
    connection.close()


Q = FrontendRequest
SAID: list[tuple[Q, bytes, bool]] = [
    (Q.SET_PROTOCOL_FEATURES, U64.pack(1 << 15), False),
    (Q.SET_FEATURES, U64.pack(OFFERED), False),
    (Q.SET_BACKEND_REQ_FD, b"", True),
    (Q.ADD_MEM_REG, REGION.encode_single(), True),
    (Q.SET_VRING_NUM, VringState(1, 128).encode(), False),
    (Q.SET_VRING_ADDR, ADDR._replace(index=1).encode(), False),
    (Q.SET_VRING_BASE, VringState(1, 7).encode(), False),
    (Q.SET_VRING_ERR, U64.pack(1), True),
    (Q.SET_VRING_CALL, U64.pack(1), True),
    (Q.SET_VRING_KICK, U64.pack(1), True),
    (Q.SET_VRING_ENABLE, VringState(1, 1).encode(), False),
    (Q.SET_VRING_KICK, U64.pack(1), True),
    (Q.SET_VRING_NUM, VringState(1, 64).encode(), False),
    (Q.SET_VRING_BASE, VringState(1, 4464).encode(), False),
    (Q.SET_VRING_BASE, VringState(1, 4464 + (1 << 16)).encode(), False),
    (Q.REM_MEM_REG, REGION.encode_single(), False),
    (Q.SET_FEATURES, U64.pack(0), False),
]


def test_each_state_is_what_a_fresh_back_end_must_hear_by_then() -> None:
    # What has not changed is not encoded again.
    store = RememberingStore()
    saver = GuestSaver(store, VM1, Journal.create("test"))
    backend = Backend(MemoryTable(inspect_memory))
    connection = OwnedFd(os.eventfd(0))
    seen: list[tuple[SavedMessage, ...]] = []
    for request, payload, with_fd in SAID:
        fds = [OwnedFd(create_memfd("x", size_bytes=REGION.size_bytes))] if with_fd else []
        backend.handle(Message(request, VERSION, payload), fds)
        for handled in (1, 2):
            saver.save(Snapshot(handled, None, backend, connection, None))
            assert store.state is not None
            assert store.state.jailed.handled == handled
            told = replay(backend)
            assert [m.content for m in store.state.jailed.messages] == [
                content for content, _ in told
            ]
            files = [os.fstat(fd.fileno()).st_ino for _, fds in told for fd in fds]
            numbers = [number for message in store.state.jailed.messages for number in message.fds]
            assert [store.inodes[f"vm1.{number}"] for number in numbers] == files
        seen += [store.state.jailed.messages] if store.state else []

    same = [index for index, (old, new) in enumerate(pairwise(seen), 1) if old == new]
    assert same == [], [SAID[index] for index in same]
    assert {f"vm1.{number}" for number in store.needed} < store.names
    assert len(store.names) == len(store.needed) + 1
    saver.close()
    backend.close()
    connection.close()


# --- a store without room -----------------------------------------------------------------------


class Kept:
    """A guest of a number of descriptors, and its saver.

    Args:
        store: where it is kept.
        number: its number.
    """

    def __init__(self, store: RememberingStore, number: int) -> None:
        self.journal = Journal.create("test")
        vm = VmId(number, f"guest {number}")
        self.saver = GuestSaver(store, vm, self.journal)
        self.backend = Backend(MemoryTable(inspect_memory))
        self._connection = OwnedFd(os.eventfd(0))

    def grow(self, regions: int) -> None:
        for _ in range(regions):
            place = len(self.backend.memory.regions) << 20
            region = RegionDescription(GuestAddr(place), 1 << 20, FrontendAddr(place), 0)
            memory = OwnedFd(create_memfd("x", size_bytes=1 << 20))
            self.backend.memory.add(region, memory)

    def save(self, handled: int = 1) -> None:
        self.saver.save(Snapshot(handled, None, self.backend, self._connection, None))

    def close(self) -> None:
        self.saver.close()
        self.backend.close()
        self._connection.close()


@fault("a VM that wants more than its share of the store")
def test_guest_that_finds_no_room_is_not_kept_and_costs_no_other_one() -> None:
    async def run() -> None:
        store = RememberingStore(3 * (SHARE + STATES))
        guests = [Kept(store, number) for number in (1, 2, 3)]
        for guest in guests[:2]:
            guest.save()
        others = set(store.names)

        with pytest.raises(OSError, match=r"1 descriptors or more are too many .*198 in all, 64"):
            guests[2].save()
        for _ in range(3):
            guests[2].save()  # It is said once.
        guests[0].grow(SHARE - 2)
        guests[0].save()

        assert {name for name in store.names if name.startswith("vm3.")} == set()
        assert others - store.names == {"vm1.state-1"}
        assert len([name for name in store.names if name.startswith("vm1.")]) == SHARE + 1
        for guest in guests:
            guest.close()

    asyncio.run(run())


@fault("a VM whose memory or vrings have changed since the last state that was kept")
def test_state_of_before_is_good_while_only_numbers_have_changed() -> None:
    store = RememberingStore()
    guest = Kept(store, 1)
    guest.save()
    assert guest.journal.required == 1

    store.full = True
    with pytest.raises(OSError, match="Too many open files"):
        guest.save(handled=2)
    assert guest.journal.required == 1
    guest.grow(1)
    with pytest.raises(OSError, match="Too many open files"):
        guest.save(handled=3)

    # It has another memory table by now: what is kept must not be gone on with.
    assert guest.journal.required == 2
    assert "vm1.state-1" in store.names
    store.full = False
    guest.save(handled=4)
    assert guest.journal.required == 2
    assert "vm1.state-2" in store.names
    guest.close()


@fault("a VM that wants more than its share of the store")
def test_guest_for_which_there_was_no_room_is_kept_once_there_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(saver_module, "NO_ROOM_S", 0.01)

    async def run() -> None:
        store = RememberingStore(2 * (SHARE + STATES))
        first, second = Kept(store, 1), Kept(store, 2)
        second.saver.when_not_kept(second.save)
        first.save()
        with pytest.raises(OSError, match="too many for the store"):
            second.save()
        first.saver.forget()
        while "vm2.state-1" not in store.names:
            await asyncio.sleep(0)

        assert store.names == {"vm2.1", "vm2.2", "vm2.state-1"}
        first.close()
        second.close()

    asyncio.run(asyncio.wait_for(run(), HANG_S))


@fault("a VM that wants more than its share of the store")
def test_guest_whose_whole_memory_is_another_is_kept_though_both_together_find_no_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(saver_module, "NO_ROOM_S", 0.01)

    async def run() -> None:
        store = RememberingStore(SHARE + STATES + 16)
        guest = Kept(store, 1)
        guest.saver.when_not_kept(guest.save)
        guest.grow(SHARE - 2)
        guest.save()
        before = set(store.needed)
        guest.backend.memory.close()
        guest.grow(SHARE - 2)
        with pytest.raises(OSError, match="65 descriptors or more are too many for the store"):
            guest.save()
        # What is kept is not true any more, whatever its VMM is told meanwhile.
        await guest.saver.drained()
        assert guest.journal.required == 2

        while "vm1.state-2" not in store.names:
            await asyncio.sleep(0)
        assert {f"vm1.{number}" for number in store.needed} | {"vm1.state-2"} == store.names
        assert len(store.needed & before) == 2
        guest.close()

    asyncio.run(asyncio.wait_for(run(), HANG_S))


@fault("keeper without a descriptor left")
def test_descriptor_that_the_keeper_lost_is_put_there_anew_and_said_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(saver_module, "LOST_S", 0.01)

    async def run() -> list[str]:
        store, said = RememberingStore(), list[str]()
        guest = Kept(store, 1)

        def save() -> None:
            try:
                guest.save()
            except OSError as err:
                said.append(str(err))

        guest.saver.when_not_kept(save)
        save()
        for losses in (1, 2):
            serial = max(int(name.rpartition("-")[2]) for name in store.names if "-" in name)
            lost = max(number for number in store.needed)
            store.names.discard(f"vm1.{lost}")
            store.owners["vm1"](f"vm1.{lost}", losses)
            while f"vm1.state-{serial + 1}" not in store.names:
                await asyncio.sleep(0)
            assert {f"vm1.{number}" for number in store.needed} <= store.names
            assert lost not in store.needed
            assert store.losses == losses
            assert set(store.stay) == {f"vm1.{number}" for number in store.needed}
        save()
        assert store.stay == []
        guest.close()
        return said

    (complaint,) = asyncio.run(asyncio.wait_for(run(), HANG_S))
    assert "what keeps it has no room for a descriptor" in complaint


@fault("a store that takes nothing while a VM's state changes over and over")
def test_guest_whose_states_wait_on_their_way_adds_none() -> None:
    async def scene() -> None:
        store = RememberingStore()
        saver = GuestSaver(store, VM1, Journal.create("test"))
        tried: list[None] = []
        saver.when_not_kept(lambda: tried.append(None))
        backend, connection = Backend(MemoryTable(inspect)), OwnedFd(os.eventfd(0))
        saver.save(Snapshot(1, None, backend, connection, None))
        before = set(store.names)
        store.behind = True
        for handled in range(2, 50):
            saver.save(Snapshot(handled, None, backend, connection, None))
        assert store.names == before
        # What is in there is true no more, and it is tried again by itself.
        assert saver.journal.required == 2
        store.behind = False
        while not tried:
            await asyncio.sleep(0.001)
        saver.save(Snapshot(50, None, backend, connection, None))
        assert store.names != before
        saver.close()
        backend.close()
        connection.close()

    asyncio.run(scene())


@fault("controller killed, with a store")
def test_target_and_level_are_kept_at_once_and_the_size_that_the_driver_wrote_soon() -> None:
    async def scene() -> None:
        store = RememberingStore()
        backend, connection = Backend(MemoryTable(inspect)), OwnedFd(os.eventfd(0))
        saver = GuestSaver(store, VM1, Journal.create("test"))

        def snapshot(row: VmRow | None) -> Snapshot:
            return Snapshot(1, row, backend, connection, None)

        def stored() -> tuple[VmRow | None, int, int]:
            assert store.state is not None
            return store.state.row, store.state.jailed.num_pages, store.state.jailed.actual

        kept = kept_module.Kept(VM1, saver, snapshot, lambda: None, lambda _event: None)
        kept.begin()
        row = VmRow(1 << 30, 2, None, 1234.5)
        backend.set_target(64 << 20)
        kept.keep(row)
        # Whenever this controller is killed, the next one asks the guest for no more than this.
        assert stored() == (row, 64 << 8, 0)
        backend.restore_config(64 << 8, 32 << 8, balloon_known=True)
        kept.save_soon()
        assert stored() == (row, 64 << 8, 0)
        await asyncio.sleep(SAVE_SOON_S)
        assert stored() == (row, 64 << 8, 32 << 8)
        kept.close()
        backend.close()
        connection.close()

    run_quickly(scene())


@fault("keeper without a descriptor left")
def test_vm_that_ends_right_after_a_loss_leaves_nothing_with_the_keeper() -> None:
    async def scene() -> tuple[set[str], set[str]]:
        theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setblocking(False)
        store, keeper = SocketStore(ours, {}, capacity=99, is_keeper=True, answers=True), Keeper()
        backend, connection = Backend(MemoryTable(inspect)), OwnedFd(os.eventfd(0))
        saver = GuestSaver(store, VM1, Journal.create("test"))

        def save_with_another_channel() -> None:
            backend.channel = OwnedFd(os.eventfd(0))
            saver.save(Snapshot(1, None, backend, connection, None))

        def keep(lost: str = "") -> None:
            """Lets the keeper handle what has come, but for the descriptor of this name."""
            with suppress(BlockingIOError):
                while True:
                    message, fds, _, _ = socket.recv_fds(theirs, 4096, 8)
                    if f"FDNAME={lost}" in message.decode().split("\n"):
                        os.close(fds.pop())
                    if answer := keeper.handle(message, fds):
                        theirs.send(answer)
                        store._hear()

        with theirs:
            save_with_another_channel()
            keep()
            before = set(keeper.kept)
            save_with_another_channel()
            (new,) = {f"vm1.{number}" for number in saver._fds.kept} - before
            keep(lost=new)
            # The keeper had not told of the loss when the state was sent, so it kept the one of
            # before, too, with what that names.
            assert set(keeper.kept) == before | {"vm1.state-2"}
            saver.forget()
            keep()
        saver.close()
        store.close()
        backend.close()
        connection.close()
        return before, set(keeper.kept)

    before, after = asyncio.run(scene())
    assert len(before) == 4
    assert after == set()
