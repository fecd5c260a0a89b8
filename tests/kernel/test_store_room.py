"""A store of little room: what one VM takes of it costs no other VM its place."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from balloon_daemon.fake_guest.wire import Wire
from balloon_daemon.handover.room import SHARE
from balloon_daemon.linux.memory import create_memfd
from balloon_daemon.units import FrontendAddr, GuestAddr
from balloon_daemon.vhost_user.messages import (
    U64,
    FrontendRequest,
    ProtocolFeature,
    RegionDescription,
    encode_request,
)
from tests.harness.daemon import Daemon
from tests.harness.faults import fault
from tests.harness.makers import StartDaemon

Q = FrontendRequest
CAPACITY = 400
PROTOCOL = ProtocolFeature.REPLY_ACK | ProtocolFeature.CONFIGURE_MEM_SLOTS


class Manager:
    """Stands for systemd, as far as its store goes: what is beyond its room is dropped.

    Args:
        path: of its notification socket.
    """

    def __init__(self, path: Path) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(str(path))
        self._sock.setblocking(False)
        self.names: set[str] = set()
        self.dropped = 0

    def look(self) -> set[str]:
        """Takes what has come, in its order; the names that it keeps."""
        while True:
            try:
                message, fds, _, _ = socket.recv_fds(self._sock, 4096, 8)
            except BlockingIOError:
                return self.names
            for fd in fds:
                os.close(fd)
            words = dict(line.partition("=")[::2] for line in message.decode().split("\n"))
            if words.get("FDSTOREREMOVE") == "1":
                self.names.discard(words["FDNAME"])
            elif words.get("FDSTORE") == "1" and len(self.names) >= CAPACITY:
                self.dropped += 1
            elif words.get("FDSTORE") == "1":
                self.names.add(words["FDNAME"])

    def close(self) -> None:
        self._sock.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path / "notify")
    yield manager
    manager.close()


class Vmm:
    """A VMM of many memory regions.

    Args:
        daemon: what it connects to.
        manager: takes what is put into its store meanwhile.
    """

    def __init__(self, daemon: Daemon, manager: Manager) -> None:
        self._manager = manager
        self.wire = Wire.connect(str(daemon.config.socket))
        self.say(Q.SET_PROTOCOL_FEATURES, U64.pack(PROTOCOL))
        self._regions = 0

    def say(self, request: Q, payload: bytes, *fds: int) -> None:
        """Says something, and waits until it is answered."""
        self.wire.send(encode_request(request, payload, ack=True), list(fds))
        # Meanwhile too, as systemd does: a store that takes nothing is waited for, 2 s an answer.
        answer, _ = self.wire.receive(lambda: (self._manager.look(), None)[1])
        assert (answer.request, answer.payload) == (request, U64.pack(0))
        self._manager.look()

    def add_regions(self, number: int) -> None:
        for _ in range(number):
            place = self._regions << 20
            region = RegionDescription(GuestAddr(place), 1 << 20, FrontendAddr(place), 0)
            memory = create_memfd("guest", size_bytes=1 << 20)
            self.say(Q.ADD_MEM_REG, region.encode_single(), memory)
            os.close(memory)
            self._regions += 1


def start(start_daemon: StartDaemon, tmp_path: Path) -> Daemon:
    launcher = ("env", f"NOTIFY_SOCKET={tmp_path}/notify", f"FDSTORE={CAPACITY}")
    return start_daemon(launcher=launcher)


def errors(daemon: Daemon) -> list[tuple[str, str]]:
    return [(r["vm"], r["message"]) for r in daemon.records() if r["level"] == "error"]


def names_of(manager: Manager, vm: str) -> set[str]:
    return {name for name in manager.look() if name.startswith(f"{vm}.")}


@fault("a VM that wants more than its share of the store")
def test_vm_that_fills_the_store_loses_its_own_place_alone(
    start_daemon: StartDaemon, manager: Manager, tmp_path: Path
) -> None:
    daemon = start(start_daemon, tmp_path)
    honest = Vmm(daemon, manager)
    honest.add_regions(3)
    greedy = [Vmm(daemon, manager) for _ in range(3)]
    for vmm in greedy:
        vmm.add_regions(250)

    # It goes on as before: each state of its own replaces the one before.
    before = names_of(manager, "vm1")
    honest.add_regions(SHARE - 10)
    after = names_of(manager, "vm1")

    assert manager.dropped == 0
    assert len(manager.look()) <= CAPACITY
    assert {name for name in before if "state" not in name} < after
    assert len(after) == len(before) + SHARE - 10
    assert [vm for vm, _ in errors(daemon)] == ["vm2", "vm3", "vm4"]
    for _, message in errors(daemon):
        assert message.startswith("cannot be kept for a later balloond: ")
        assert message.endswith("or more are too many for the store (400 in all, 64 for a VM)")
    for vmm in (honest, *greedy):
        vmm.wire.close()
