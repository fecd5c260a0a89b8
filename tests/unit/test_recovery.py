"""What becomes of guests that another controller left, where something of one is not there."""

import asyncio
import fcntl
import gc
import os
import socket
import struct
import termios
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from balloon_daemon.config.model import Config
from balloon_daemon.controller.governor import Governor
from balloon_daemon.device.spec import DeviceSpec
from balloon_daemon.events import (
    ConnectionClosed,
    ConnectionFailed,
    Event,
    NotStored,
    RequestNotServed,
    StateRefused,
    VmAttached,
    VmNotServed,
)
from balloon_daemon.guests.jailed.forks import Forks
from balloon_daemon.guests.jailed.peers import Peers
from balloon_daemon.guests.jailed.recovery import recover
from balloon_daemon.guests.jailed.saver import GuestSaver, Saver, Snapshot
from balloon_daemon.guests.jailed.session import MakeSession, Session, Shared
from balloon_daemon.guests.jailed.supervisor import DeviceSupervisor
from balloon_daemon.guests.seam import VmRow
from balloon_daemon.handover.journal import MAX_REQUEST_BYTES, Journal, Phase
from balloon_daemon.handover.room import Room
from balloon_daemon.handover.state import MAX_STATE_BYTES, GuestState, decode_state
from balloon_daemon.handover.store import HasFileno, NoStore
from balloon_daemon.host.low_memory import ChromeosLowMemory
from balloon_daemon.host.watch import MemoryWatch
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.linux.memory import create_memfd
from balloon_daemon.linux.mountinfo import read_lines
from balloon_daemon.units import PAGE_SIZE, FrontendAddr, GuestAddr, VmId
from balloon_daemon.vhost_user.backend import Backend
from balloon_daemon.vhost_user.connection import Connection, inspect_memory, right_kind
from balloon_daemon.vhost_user.foreign_fds import ForeignFds
from balloon_daemon.vhost_user.memory_table import Fd, FileFacts, MemoryTable
from balloon_daemon.vhost_user.messages import (
    HEADER,
    U64,
    VERSION,
    VRING_NOFD_MASK,
    ConfigAccess,
    FrontendRequest,
    Message,
    ProtocolFeature,
    RegionDescription,
    VringAddr,
    VringState,
    encode_memory_table,
    encode_reply,
    encode_request,
)
from tests.fakes.asked_template import AskedTemplate
from tests.fakes.closes_at_once import closes_at_once
from tests.fakes.told_backend import ADDR, OFFERED, REGION, fresh
from tests.harness.faults import fault
from tests.harness.waiting import HANG_S

Q = FrontendRequest
NAMES = ("vm1", "vm2")
RECORDED = Path(__file__).parents[1] / "data" / "handover"
NO_ROOM = "its descriptors found no room here (too many open files)"
DAMAGED = "the journal that another balloond left is damaged"

VM1 = VmId(1, "vm1")
ROW = VmRow(1 << 30, 0, None, None)


class KeepingStore(NoStore):
    """Stands for a store: all that was put into it is what the next controller finds."""

    keeps = True

    def __init__(self) -> None:
        super().__init__()
        self.room = Room(1000)
        self.names: set[str] = set()
        self.full = False

    def put(self, name: str, fd: HasFileno, *, vmm: bool = False) -> None:
        if self.full:
            raise OSError(24, os.strerror(24))
        self.names.add(name)
        self.kept[name] = OwnedFd(os.dup(fd.fileno()))

    def remove(self, name: str) -> None:
        self.names.discard(name)

    def replace(
        self,
        name: str,
        fd: HasFileno,
        gone: Sequence[str],
        *,
        losses: int = 0,
        stay: Sequence[str] | None = None,
    ) -> None:
        self.put(name, fd)
        for each in gone:
            self.remove(each)


def whose_rings_run(base: int) -> Backend:
    """A back-end with memory and two vrings that stand at ``base``; no policy has begun."""
    backend = Backend(MemoryTable(inspect_memory), right_kind=right_kind)

    def say(request: Q, payload: bytes, *fds: int) -> None:
        backend.handle(Message(request, VERSION, payload), [OwnedFd(fd) for fd in fds])

    say(Q.SET_PROTOCOL_FEATURES, U64.pack(ProtocolFeature.REPLY_ACK))
    say(Q.SET_FEATURES, U64.pack(OFFERED))
    memory = create_memfd("guest", size_bytes=REGION.size_bytes)
    say(Q.SET_MEM_TABLE, encode_memory_table([REGION]), memory)
    for index in (0, 1):
        addr = VringAddr(index, 0, ADDR.descriptors, ADDR.used, ADDR.available)
        say(Q.SET_VRING_NUM, VringState(index, 128).encode())
        say(Q.SET_VRING_BASE, VringState(index, base).encode())
        say(Q.SET_VRING_ADDR, addr.encode())
        say(Q.SET_VRING_KICK, U64.pack(index), os.eventfd(0))
        say(Q.SET_VRING_CALL, U64.pack(index), os.eventfd(0))
        say(Q.SET_VRING_ENABLE, VringState(index, 1).encode())
    return backend


def is_unread(vmm: socket.socket) -> bool:
    """Whether something that a VMM has sent waits in its socket (SIOCOUTQ, unix(7))."""
    return int.from_bytes(fcntl.ioctl(vmm, termios.TIOCOUTQ, bytes(4)), "little") > 0


def no_fork(_spec: DeviceSpec, _tube_fd: int, _words_fd: int, _parent: int) -> int:
    raise OSError(11, "not here")


class Left:
    """Two guests that a controller left in a store before it was gone.

    Args:
        make: makes the back-end of each.
    """

    def __init__(self, make: Callable[[], Backend] = fresh) -> None:
        self.store = KeepingStore()
        self.vmms: list[socket.socket] = []
        self.journals: list[OwnedFd] = []
        self.channels: dict[str, int] = {}
        self.published: list[Event] = []
        for name in NAMES:
            vmm, ours = socket.socketpair()
            vmm.setblocking(False)
            self.vmms.append(vmm)
            vm = VmId(int(name.removeprefix("vm")), name)
            saver = GuestSaver(self.store, vm, Journal.create("test"))
            backend = make()
            backend.channel = channel = OwnedFd(socket.socket(socket.AF_UNIX).detach())
            self.channels[name] = os.fstat(channel.fileno()).st_ino
            saver.save(Snapshot(0, None, backend, ours, None))
            self.journals.append(saver.journal.fd.duplicate())
            saver.close()
            backend.close()
            ours.close()

    def forget_channel(self, name: str) -> None:
        """Loses one descriptor of a guest, which its state names."""
        for key in [key for key in self.store.kept if key.startswith(f"{name}.")]:
            if os.fstat(self.store.kept[key].fileno()).st_ino == self.channels[name]:
                self.store.kept.pop(key).close()
                self.store.names.discard(key)

    def of(self, *kinds: type) -> list[Event]:
        """What was published of these classes."""
        return [event for event in self.published if isinstance(event, kinds)]

    def go_on(self, folder: Path) -> list[Session]:
        """Another controller's guests; within an event loop."""
        return recover(self.store, self.maker(folder), closes_at_once(), self.published.append)

    def maker(self, folder: Path) -> MakeSession:
        """Makes sessions of another controller; within an event loop."""
        publish, loop = self.published.append, asyncio.get_running_loop()
        watch = MemoryWatch(ChromeosLowMemory(folder), 1.0, publish, loop)
        governor = Governor(Config().policy, watch, publish, loop)
        shared = Shared(Config(), None, Forks(AskedTemplate(no_fork)), publish, governor.report)
        peers = Peers()

        def make(vm: VmId, connection: Connection, saver: Saver) -> Session:
            session = Session(vm, connection, peers.of(connection), shared, saver)
            governor.add(session)
            return session

        return make

    def attached(self) -> list[str]:
        """The VMs whose policies have begun."""
        return [event.vm.name for event in self.published if isinstance(event, VmAttached)]

    async def first_is_let_go_and_second_served(self, guests: list[Session]) -> None:
        """Raises TimeoutError where it is not so."""
        loop = asyncio.get_running_loop()
        served = [loop.create_task(guest.serve()) for guest in guests]
        assert await asyncio.wait_for(loop.sock_recv(self.vmms[0], 64), HANG_S) == b""
        self.vmms[1].send(encode_request(FrontendRequest.GET_FEATURES))
        assert len(await asyncio.wait_for(loop.sock_recv(self.vmms[1], 64), HANG_S)) == 20
        for vmm in self.vmms:
            vmm.close()
        await asyncio.wait_for(asyncio.gather(*served), HANG_S)


@fault("state of another version, damaged, or with descriptors missing")
def test_descriptor_that_was_not_kept_ends_that_vmm_and_the_other_guest_goes_on(
    tmp_path: Path,
) -> None:
    left = Left()
    left.forget_channel("vm1")

    async def go_on() -> list[str]:
        guests = left.go_on(tmp_path)
        await left.first_is_let_go_and_second_served(guests)
        return [guest.vm.name for guest in guests]

    assert asyncio.run(go_on()) == ["vm2"]
    why = "names 1 descriptors that were not kept"
    assert left.of(StateRefused, ConnectionClosed) == [StateRefused(VM1, why)]
    assert left.store.names == set()


@fault("journal of a request in the making is damaged")
@pytest.mark.parametrize(("phase", "length"), [(7, 0), (Phase.HANDLING, MAX_REQUEST_BYTES + 1)])
def test_damaged_journal_ends_that_vmm_and_the_other_guest_goes_on(
    tmp_path: Path, phase: int, length: int
) -> None:
    left = Left()
    os.pwrite(left.journals[0].fileno(), struct.pack("<IIQ", phase, length, 1), 0)

    async def go_on() -> list[str]:
        guests = left.go_on(tmp_path)
        await left.first_is_let_go_and_second_served(guests)
        return [guest.vm.name for guest in guests]

    assert asyncio.run(go_on()) == list(NAMES)
    what = f"a request of {length} bytes in phase {phase:d}"
    assert left.of(StateRefused, ConnectionClosed) == [ConnectionClosed(VM1, f"{DAMAGED}: {what}")]
    assert left.store.names == set()


@fault("controller that takes over the VMs of a user with 256 memory regions each")
def test_mounts_are_read_once_for_the_files_of_all_guests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def whose_files_are_on_disks() -> Backend:
        # A device may map a file of a local disk, so it is kept; its kind is told by the mounts.
        def on_disk(fds: Sequence[Fd]) -> list[FileFacts]:
            return [FileFacts(None, PAGE_SIZE, "is a file on ext4") for _ in fds]

        backend = Backend(MemoryTable(on_disk))
        for number in range(3):
            description = REGION._replace(
                guest_addr=GuestAddr(number << 30), frontend_addr=FrontendAddr(number << 30)
            )
            file = OwnedFd(os.open(tmp_path / f"file{number}", os.O_RDWR | os.O_CREAT))
            os.truncate(file.fileno(), description.size_bytes)
            request = Message(Q.ADD_MEM_REG, VERSION, description.encode_single())
            backend.handle(request, [file])
        return backend

    left = Left(whose_files_are_on_disks)
    reads: list[int] = []

    def read() -> list[bytes]:
        reads.append(len(reads))
        return read_lines()

    monkeypatch.setattr("balloon_daemon.linux.memory_file_kind.read_lines", read)
    # No memory file, wherever the test's directory is: the mounts are looked into for each.
    monkeypatch.setattr("balloon_daemon.linux.memory_file_kind.F_GET_SEALS", -1)

    async def go_on() -> None:
        guests = left.go_on(tmp_path)
        assert [len(guest.backend.memory.regions) for guest in guests] == [3, 3]
        assert len(reads) == 1
        # What a VMM sends later may be on a mount that is newer.
        file = OwnedFd(os.open(tmp_path / "file0", os.O_RDWR))
        description = REGION._replace(guest_addr=GuestAddr(9 << 30), frontend_addr=FrontendAddr(0))
        guests[0].backend.memory.add(description, file)
        assert len(reads) == 2
        for guest in guests:
            guest.give_up()

    asyncio.run(go_on())
    for vmm in left.vmms:
        vmm.close()


@fault("controller killed in the middle of a VMM's request")
def test_descriptors_are_kept_before_the_device_ends_for_their_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = Left()
    memory = OwnedFd(create_memfd("guest", size_bytes=1 << 20))
    region = RegionDescription(GuestAddr(0), 1 << 20, FrontendAddr(1 << 40), 0)
    inode = os.fstat(memory.fileno()).st_ino

    async def go_on() -> list[int]:
        ending = asyncio.Event()

        async def stop(_keeper: DeviceSupervisor) -> None:
            ending.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(DeviceSupervisor, "stop", stop)
        loop = asyncio.get_running_loop()
        served = [loop.create_task(guest.serve()) for guest in left.go_on(tmp_path)]
        request = encode_request(FrontendRequest.SET_MEM_TABLE, encode_memory_table([region]))
        socket.send_fds(left.vmms[0], [request], [memory.fileno()])
        await asyncio.wait_for(ending.wait(), HANG_S)

        kept = [os.fstat(fd.fileno()).st_ino for fd in left.store.kept.values()]
        monkeypatch.undo()
        served[0].cancel()
        for vmm in left.vmms:
            vmm.close()
        await asyncio.wait(served, timeout=HANG_S)
        return kept

    assert inode in asyncio.run(go_on())
    memory.close()


@fault("SIGUSR1 arrives just after a VMM's message")
def test_message_that_is_taken_as_its_controller_leaves_is_not_lost_with_its_descriptors(
    tmp_path: Path,
) -> None:
    left = Left()
    memory = OwnedFd(create_memfd("guest", size_bytes=1 << 20))
    region = RegionDescription(GuestAddr(0), 1 << 20, FrontendAddr(1 << 40), 0)

    async def leave() -> None:
        loop = asyncio.get_running_loop()
        guests = left.go_on(tmp_path)
        served = [loop.create_task(guest.serve()) for guest in guests]
        for _ in range(5):
            await asyncio.sleep(0)  # They wait for a message.
        request = encode_request(FrontendRequest.SET_MEM_TABLE, encode_memory_table([region]))
        socket.send_fds(left.vmms[0], [request], [memory.fileno()])
        # The event loop has taken it, and the guest's task has not seen it yet.
        while is_unread(left.vmms[0]):
            await asyncio.sleep(0)
        for guest, task in zip(guests, served, strict=True):
            guest.leave()
            task.cancel()
        await asyncio.wait(served)

    async def go_on() -> list[int]:
        loop = asyncio.get_running_loop()
        guests = left.go_on(tmp_path)
        served = [loop.create_task(guest.serve()) for guest in guests]
        left.vmms[0].send(encode_request(FrontendRequest.GET_FEATURES))
        assert len(await asyncio.wait_for(loop.sock_recv(left.vmms[0], 64), HANG_S)) == 20
        files = [region.fd for region in guests[0].backend.memory.regions]
        shared = [os.fstat(fd.fileno()).st_ino for fd in files if fd is not None]
        for vmm in left.vmms:
            vmm.close()
        await asyncio.wait(served)
        return shared

    before = {name: fd.duplicate() for name, fd in left.store.kept.items()}
    asyncio.run(leave())
    # A store goes on holding what it has handed out.
    left.store.kept = before | left.store.kept
    assert asyncio.run(go_on()) == [os.fstat(memory.fileno()).st_ino]
    memory.close()


@fault("no room for a descriptor on its way into the store")
def test_guest_for_which_there_is_no_room_any_more_does_not_fill_the_log(tmp_path: Path) -> None:
    left = Left()

    async def save() -> int:
        loop = asyncio.get_running_loop()
        guests = left.go_on(tmp_path)
        served = [loop.create_task(guest.serve()) for guest in guests]
        for vmm in left.vmms:
            assert len(await ask(vmm, Q.GET_FEATURES)) == 8
        left.store.full = True
        first = int(loop.time())
        for _ in range(1000):
            guests[0].keep(ROW)
        seconds = int(loop.time()) - first + 1
        # Those left out are told with the next line, however late it is.
        while int(loop.time()) < first + seconds:
            await asyncio.sleep(0.1)
        guests[0].keep(ROW)
        for vmm in left.vmms:
            vmm.close()
        await asyncio.wait_for(asyncio.gather(*served), HANG_S)
        return seconds

    seconds = asyncio.run(save())
    said = [event for event in left.published if isinstance(event, NotStored)]
    assert 2 <= len([event for event in said if event.vm == VM1]) <= seconds + 2
    assert said[0] == NotStored(VM1, "Too many open files")
    assert any(event.suppressed for event in said)


async def ask(vmm: socket.socket, request: Q, payload: bytes = b"") -> bytes:
    """A VMM's request that is answered; the answer's payload."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(vmm, encode_request(request, payload))
    return (await asyncio.wait_for(loop.sock_recv(vmm, 256), HANG_S))[HEADER.size :]


async def target_of(vmm: socket.socket) -> int:
    """The pages that a guest is asked for, read by its VMM."""
    access = ConfigAccess(0, 0, bytes(16))
    return int.from_bytes((await ask(vmm, Q.GET_CONFIG, access.encode()))[12:16], "little")


@fault("a guest whose balloon was just being found out")
def test_memory_that_was_cut_short_meanwhile_costs_that_guest_its_balloon_and_no_vmm(
    tmp_path: Path,
) -> None:
    left = Left(lambda: whose_rings_run(0))
    memory = [
        key
        for key, fd in left.store.kept.items()
        if key.startswith("vm1.") and os.fstat(fd.fileno()).st_size == REGION.size_bytes
    ]
    os.ftruncate(left.store.kept[memory[0]].fileno(), 4096)

    async def go_on() -> list[int]:
        loop = asyncio.get_running_loop()
        guests = left.go_on(tmp_path)
        served = [loop.create_task(guest.serve()) for guest in guests]
        answers = [len(await ask(vmm, Q.GET_FEATURES)) for vmm in left.vmms]
        guests[0].keep(ROW)
        for vmm in left.vmms:
            vmm.close()
        await asyncio.wait_for(asyncio.gather(*served), HANG_S)
        return answers

    assert asyncio.run(go_on()) == [8, 8]
    assert left.attached() == ["vm2"]
    why = "memory region at 0x0 exceeds its file of 4096 bytes"
    assert left.of(VmNotServed, StateRefused, ConnectionClosed) == [VmNotServed(VM1, why)]
    assert len(memory) == 1
    assert left.store.names == set()


@fault("a guest whose balloon was just being found out")
def test_driver_in_mid_life_whose_balloon_is_unknown_is_asked_on_by_the_next_controller(
    tmp_path: Path,
) -> None:
    left = Left(lambda: whose_rings_run(7))

    async def go_on() -> tuple[int, int]:
        loop = asyncio.get_running_loop()
        guests = left.go_on(tmp_path)
        served = [loop.create_task(guest.serve()) for guest in guests]
        asked = await target_of(left.vmms[0])
        answer = ConfigAccess(4, 0, (64 * 256).to_bytes(4, "little"))
        await loop.sock_sendall(left.vmms[0], encode_request(Q.SET_CONFIG, answer.encode()))
        afterwards = await target_of(left.vmms[0])
        for vmm in left.vmms:
            vmm.close()
        await asyncio.wait_for(asyncio.gather(*served), HANG_S)
        return asked, afterwards

    assert asyncio.run(go_on()) == (1, 0)
    assert left.attached() == ["vm1"]


@pytest.mark.parametrize(
    ("request_", "payload", "why"),
    [
        (Q.SET_MEM_TABLE, encode_memory_table([REGION]), f"its memory is unknown: {NO_ROOM}"),
        (Q.ADD_MEM_REG, REGION.encode_single(), f"its memory is unknown: {NO_ROOM}"),
        (Q.SET_VRING_KICK, U64.pack(1), f"SET_VRING_KICK: {NO_ROOM}"),
        (Q.SET_BACKEND_REQ_FD, b"", f"SET_BACKEND_REQ_FD: {NO_ROOM}"),
        (Q.SET_MEM_TABLE, encode_memory_table([]), ""),
        (Q.SET_VRING_CALL, U64.pack(1 | VRING_NOFD_MASK), ""),
    ],
)
def test_request_whose_descriptors_died_with_another_controller_is_answered(
    tmp_path: Path, request_: Q, payload: bytes, why: str
) -> None:
    left = Left(lambda: whose_rings_run(0))
    request = encode_request(request_, payload, ack=True)
    head = struct.pack("<IIQ", Phase.HANDLING, len(request), 1)
    os.pwrite(left.journals[0].fileno(), head + request, 0)

    async def go_on() -> bytes:
        loop = asyncio.get_running_loop()
        served = [loop.create_task(guest.serve()) for guest in left.go_on(tmp_path)]
        answer = await asyncio.wait_for(loop.sock_recv(left.vmms[0], 64), HANG_S)
        assert len(await ask(left.vmms[1], Q.GET_FEATURES)) == 8
        for vmm in left.vmms:
            vmm.close()
        await asyncio.wait_for(asyncio.gather(*served), HANG_S)
        return answer

    assert asyncio.run(go_on()) == encode_reply(request_, U64.pack(0))
    said = [
        event.why
        for event in left.published
        if isinstance(event, RequestNotServed | VmNotServed) and event.vm == VM1
    ]
    assert [reason for reason in said if NO_ROOM in reason] == [why] * bool(why)


def test_guest_whose_rings_ran_before_anything_was_decided_is_governed_by_the_next_controller(
    tmp_path: Path,
) -> None:
    left = Left(lambda: whose_rings_run(0))

    async def go_on() -> None:
        loop = asyncio.get_running_loop()
        served = [loop.create_task(guest.serve()) for guest in left.go_on(tmp_path)]
        await target_of(left.vmms[0])
        for vmm in left.vmms:
            vmm.close()
        await asyncio.wait_for(asyncio.gather(*served), HANG_S)

    asyncio.run(go_on())
    assert left.attached() == list(NAMES)


@fault("a VM whose memory or vrings have changed since the last state that was kept")
def test_state_that_is_older_than_what_its_vmm_was_told_ends_that_vmm(tmp_path: Path) -> None:
    left = Left()
    journal = Journal(left.journals[0].duplicate())
    journal.require(journal.required + 1)
    journal.close()

    async def go_on() -> list[str]:
        guests = left.go_on(tmp_path)
        await left.first_is_let_go_and_second_served(guests)
        return [guest.vm.name for guest in guests]

    assert asyncio.run(go_on()) == ["vm2"]
    why = "is not the newest, for which there was no room"
    assert left.of(StateRefused, ConnectionClosed) == [StateRefused(VM1, why)]
    assert left.store.names == set()


def test_journal_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    left = Left()
    for journal in left.journals:
        os.truncate(journal.fileno(), 16 + MAX_REQUEST_BYTES)

    async def go_on() -> list[str]:
        guests = left.go_on(tmp_path)
        for vmm in left.vmms:
            vmm.close()
        await asyncio.gather(*(guest.serve() for guest in guests))
        return [guest.vm.name for guest in guests]

    assert asyncio.run(go_on()) == list(NAMES)
    assert left.of(StateRefused, ConnectionClosed, ConnectionFailed) == []


class LeftByVersion1(Left):
    """Two VMs that balloond left in a store when it wrote states of version 1, as recorded then.

    Args:
        folder: where it is recorded; tests/data/handover/README.md says how.
    """

    def __init__(self, folder: Path) -> None:
        self.store = KeepingStore()
        self.vmms: list[socket.socket] = []
        self.published = []
        self.states: dict[str, GuestState] = {}
        for line in (folder / "descriptors").read_text().splitlines():
            name, kind, *size = line.split()
            fd = self._make(name, kind, int(*size))
            self.store.put(name, fd)
            fd.close()
        for path in sorted(folder.glob("vm*")):
            state = OwnedFd(create_memfd("state", content=path.read_bytes()))
            self.store.put(path.name, state)
            self.states[path.name.partition(".")[0]] = decode_state(path.read_bytes())

    def _make(self, name: str, kind: str, size: int) -> OwnedFd:
        """A descriptor of the kind that the store had."""
        match kind:
            case "socket":
                vmm, ours = socket.socketpair()
                self.vmms += [vmm]
                return OwnedFd(ours.detach())
            case "journal":
                return OwnedFd(create_memfd("journal", size_bytes=8216))
            case "memory":
                return OwnedFd(create_memfd("guest", size_bytes=size))
            case "eventfd":
                return OwnedFd(os.eventfd(0))
            case _:
                reader, writer = os.pipe()
                os.close(writer)
                return OwnedFd(reader)


def without_deadlines(states: dict[str, GuestState]) -> dict[str, GuestState]:
    return {
        vm: state._replace(
            row=state.row and state.row._replace(recheck_at_s=None, release_at_s=None)
        )
        for vm, state in states.items()
    }


@pytest.mark.parametrize("style", ["qemu", "crosvm"])
def test_vms_that_the_version_before_left_are_gone_on_with_just_as_they_were(
    tmp_path: Path, style: str
) -> None:
    left = LeftByVersion1(RECORDED / "v1" / style)
    before = set(left.store.names)

    async def go_on() -> list[VmId]:
        guests = left.go_on(tmp_path)
        served = [asyncio.ensure_future(guest.serve()) for guest in guests]
        await asyncio.sleep(0)  # They begin.
        for guest, task in zip(guests, served, strict=True):
            guest.leave()
            task.cancel()
        await asyncio.wait(served)
        return [guest.vm for guest in guests]

    assert asyncio.run(go_on()) == [VmId(1, "vm1"), VmId(3, "vm3")]
    assert left.of(StateRefused) == []
    written = {
        name.partition(".")[0]: os.pread(left.store.kept[name].fileno(), MAX_STATE_BYTES, 0)
        for name in left.store.names
        if ".state-" in name
    }
    assert [state.partition(b" state ")[2][:2] for state in written.values()] == [b"2 "] * 2
    # The row, the messages and each descriptor's number: this version writes what it has read,
    # but for deadlines, which lay far off the clock of this host.
    after = {vm: decode_state(state) for vm, state in written.items()}
    assert without_deadlines(after) == without_deadlines(left.states)
    assert {name for name in before ^ left.store.names if ".state-" not in name} == set()
    for vmm in left.vmms:
        vmm.close()


def test_guest_that_is_gone_leaves_nothing_to_the_garbage_collector(tmp_path: Path) -> None:
    left = Left()

    async def live() -> list[object]:
        loop = asyncio.get_running_loop()
        guests = left.go_on(tmp_path)
        known = [weakref.ref(guest) for guest in guests]
        served = [loop.create_task(guest.serve()) for guest in guests]
        left.vmms[0].send(b"garbage that is no message at all")
        left.vmms[1].send(encode_request(FrontendRequest.GET_FEATURES))
        assert len(await asyncio.wait_for(loop.sock_recv(left.vmms[1], 64), HANG_S)) == 20
        left.vmms[1].close()
        del guests
        await asyncio.wait(served)
        served.clear()
        await asyncio.sleep(0)
        return [each() for each in known]

    gc.disable()
    try:
        assert asyncio.run(live()) == [None, None]
    finally:
        gc.enable()
        left.vmms[0].close()


def test_message_that_nobody_has_seen_at_the_end_leaves_no_descriptor(tmp_path: Path) -> None:
    left = Left()
    memory = OwnedFd(create_memfd("guest", size_bytes=1 << 20))
    region = RegionDescription(GuestAddr(0), 1 << 20, FrontendAddr(1 << 40), 0)

    async def end() -> tuple[int, list[int]]:
        loop = asyncio.get_running_loop()
        guests = left.go_on(tmp_path)
        served = [loop.create_task(guest.serve()) for guest in guests]
        for _ in range(5):
            await asyncio.sleep(0)  # They wait for a message.
        request = encode_request(FrontendRequest.SET_MEM_TABLE, encode_memory_table([region]))
        socket.send_fds(left.vmms[0], [request], [memory.fileno()])
        foreign = guests[0]._connection.foreign
        while is_unread(left.vmms[0]):
            await asyncio.sleep(0)
        for task in served:
            task.cancel()
        await asyncio.wait(served)
        return foreign.held, foreign._dropped

    assert asyncio.run(end()) == (0, [])
    for vmm in left.vmms:
        vmm.close()
    memory.close()


def test_guest_that_has_ended_when_its_controller_leaves_costs_no_other_its_place(
    tmp_path: Path,
) -> None:
    left = Left()

    async def leave() -> set[str]:
        loop = asyncio.get_running_loop()
        guests = left.go_on(tmp_path)
        served = [loop.create_task(guest.serve()) for guest in guests]
        left.vmms[0].close()
        await asyncio.wait_for(served[0], HANG_S)
        for guest in guests:
            guest.leave()
        served[1].cancel()
        await asyncio.wait(served)
        return {name.partition(".")[0] for name in left.store.names}

    assert asyncio.run(leave()) == {NAMES[1]}
    left.vmms[1].close()


def test_guest_whose_task_has_not_begun_when_its_controller_leaves_is_kept(
    tmp_path: Path,
) -> None:
    async def scene() -> set[str]:
        left = Left()
        vmm, ours = socket.socketpair()
        saver = GuestSaver(left.store, VmId(9, "vm9"), Journal.create("test"))
        connection = Connection(ours, ForeignFds(closes_at_once()))
        guest = left.maker(tmp_path)(VmId(9, "vm9"), connection, saver)
        guest.leave()
        kept = {name for name in left.store.names if name.startswith("vm9.")}
        guest.give_up()
        for each in (vmm, *left.vmms):
            each.close()
        return kept

    assert "vm9.state-1" in asyncio.run(scene())
