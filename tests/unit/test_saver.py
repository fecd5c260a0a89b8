"""What of a guest is in the store, whatever fails on the way there."""

import os
from typing import cast

import pytest

from balloon_daemon.controller.saver import GuestSaver, Snapshot
from balloon_daemon.handover.journal import Journal
from balloon_daemon.handover.state import MAX_STATE_BYTES, decode_state
from balloon_daemon.handover.store import HasFileno, Store
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.linux.memory import read_sealed
from balloon_daemon.vhost_user.backend import Backend
from balloon_daemon.vhost_user.memory_table import MemoryTable
from tests.fakes.counted_fd import inspect


class RememberingStore:
    """Stands for a store: the names that it has, and the newest state's descriptors by number."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.needed: set[int] = set()
        self.full = False

    def put(self, name: str, fd: HasFileno, *, vmm: bool = False) -> None:
        if self.full:
            raise OSError(24, os.strerror(24))
        self.names.add(name)
        if ".state-" in name:
            self.needed = set(decode_state(read_sealed(fd.fileno(), MAX_STATE_BYTES)).fds())

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
