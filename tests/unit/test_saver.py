"""What of a guest is in the store, whatever fails on the way there."""

import os
from dataclasses import replace
from itertools import pairwise
from typing import cast

import pytest

from balloon_daemon.controller.saver import GuestSaver, Snapshot
from balloon_daemon.handover.journal import Journal
from balloon_daemon.handover.state import MAX_STATE_BYTES, GuestState, SavedMessage, decode_state
from balloon_daemon.handover.store import HasFileno, Store
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.linux.memory import create_memfd, read_sealed
from balloon_daemon.vhost_user.backend import Backend
from balloon_daemon.vhost_user.connection import inspect_memory
from balloon_daemon.vhost_user.memory_table import MemoryTable
from balloon_daemon.vhost_user.messages import (
    U64,
    VERSION,
    FrontendRequest,
    Message,
    VringState,
)
from balloon_daemon.vhost_user.replay import replay
from tests.fakes.counted_fd import inspect
from tests.fakes.told_backend import ADDR, OFFERED, REGION


class RememberingStore:
    """Stands for a store: the names that it has, and the newest state's descriptors by number."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.needed: set[int] = set()
        self.full = False
        self.state: GuestState | None = None
        self.inodes: dict[str, int] = {}

    def put(self, name: str, fd: HasFileno, *, vmm: bool = False) -> None:
        if self.full:
            raise OSError(24, os.strerror(24))
        self.names.add(name)
        self.inodes[name] = os.fstat(fd.fileno()).st_ino
        if ".state-" in name:
            self.state = decode_state(read_sealed(fd.fileno(), MAX_STATE_BYTES))
            self.needed = self.state.fds()

    def remove(self, name: str) -> None:
        self.names.discard(name)


def test_descriptor_that_found_no_room_in_the_store_is_put_there_with_the_next_state() -> None:
    store = RememberingStore()
    saver = GuestSaver(cast(Store, store), "vm1", Journal.create("test"))
    backend = Backend(MemoryTable(inspect))
    connection = OwnedFd(os.eventfd(0))
    snapshot = Snapshot(1, 0, None, backend, connection, None)
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
    (Q.SET_VRING_ADDR, replace(ADDR, index=1).encode(), False),
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
    saver = GuestSaver(cast(Store, store), "vm1", Journal.create("test"))
    backend = Backend(MemoryTable(inspect_memory))
    connection = OwnedFd(os.eventfd(0))
    seen: list[tuple[SavedMessage, ...]] = []
    for request, payload, with_fd in SAID:
        fds = [OwnedFd(create_memfd("x", size_bytes=REGION.size_bytes))] if with_fd else []
        backend.handle(Message(request, VERSION, payload), fds)
        for handled in (1, 2):
            saver.save(Snapshot(handled, 0, None, backend, connection, None))
            assert store.state is not None
            assert store.state.handled == handled
            told = replay(backend)
            assert [m.content for m in store.state.messages] == [content for content, _ in told]
            files = [os.fstat(fd.fileno()).st_ino for _, fds in told for fd in fds]
            numbers = [number for message in store.state.messages for number in message.fds]
            assert [store.inodes[f"vm1.{number}"] for number in numbers] == files
        seen += [store.state.messages] if store.state else []

    same = [index for index, (old, new) in enumerate(pairwise(seen), 1) if old == new]
    assert same == [], [SAID[index] for index in same]
    assert {f"vm1.{number}" for number in store.needed} < store.names
    assert len(store.names) == len(store.needed) + 1
    saver.close()
    backend.close()
    connection.close()
