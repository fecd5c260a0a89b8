"""A VM must not die of balloond: whatever is odd about what its VMM says, both go on."""

import os
import resource
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest

from balloon_daemon.fake_guest.machine import FakeGuest, GuestSettings
from balloon_daemon.fake_guest.pages import Population
from balloon_daemon.fake_guest.settings import DriverSettings
from balloon_daemon.fake_guest.styles import CROSVM, QEMU, QEMU_WITHOUT_SLOTS, STYLES, Style
from balloon_daemon.fake_guest.wire import BackendError
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.units import GIB, MIB, PAGE_SIZE, FrontendAddr
from balloon_daemon.vhost_user.messages import (
    U64,
    VRING_NOFD_MASK,
    ConfigAccess,
    FrontendRequest,
    ProtocolFeature,
    VringAddr,
    VringState,
    decode_config_access,
)
from balloon_daemon.virtio.balloon import OFFERED_FEATURES, BalloonFeature
from tests.fakes import memory_files
from tests.fakes.memory_files import MakeFile, region
from tests.harness.daemon import Daemon
from tests.harness.faults import fault
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.makers import MAXIMUM, VM_MEM_MIB, MakeGuest, StartDaemon
from tests.harness.short_host import at_rest, fds_but_figures, limit_for_room, limited
from tests.harness.whole_vm import (
    LOST,
    OF_VMM,
    Shared,
    Twist,
    balloon_bytes,
    errors,
    keep_ram_in,
    run_until,
    said,
    share_beside,
    twist,
    wait_for_device,
)

Q = FrontendRequest
TOUCHED = Population(touched_bytes=32 * MIB, pinned_bytes=16 * MIB)
SETTINGS = GuestSettings(VM_MEM_MIB * MIB, population=TOUCHED)
BESIDE_AT = 8 * GIB
"""Where a VM has what is not its RAM."""


def start_vm(guest: FakeGuest, daemon: Daemon) -> FakeGuest:
    guest.connect(str(daemon.config.socket))
    guest.bind()
    return guest


def assert_served(guests: Sequence[FakeGuest], low_mem: LowMemDir) -> None:
    """Each of them gives its whole balloon, and loses nothing else."""
    low_mem.set_low()
    run_until(guests, lambda: all(balloon_bytes(guest) == MAXIMUM for guest in guests))
    assert [guest.disconnected for guest in guests] == [""] * len(guests)
    assert [guest.ram.check().pages_corrupt for guest in guests] == [0] * len(guests)


def assert_lives_without_balloon(
    guest: FakeGuest, neighbour: FakeGuest, low_mem: LowMemDir
) -> None:
    """All that its VMM asks is answered, its guest gives nothing, its neighbour all."""
    low_mem.set_low()
    run_until([guest, neighbour], lambda: balloon_bytes(neighbour) == MAXIMUM)
    guest.pause()
    guest.resume()
    assert guest.frontend is not None
    assert guest.frontend.read_config(4, 4) == bytes(4)
    assert (guest.disconnected, guest.driver.actual) == ("", 0)
    assert guest.ram.check().pages_corrupt == 0


# --- memory regions that are no RAM -----------------------------------------------------------


@fault("memory region that cannot be freed")
@pytest.mark.parametrize(
    ("make", "style", "why"),
    [
        (memory_files.on_disk, QEMU, "is a file on "),
        (memory_files.on_disk, QEMU_WITHOUT_SLOTS, "is a file on "),
        (memory_files.on_disk, CROSVM, "is a file on "),
        (memory_files.on_disk_read_only, QEMU, "is a file on "),
        (memory_files.device, QEMU, "is "),
        (memory_files.device, QEMU_WITHOUT_SLOTS, "is "),
        (memory_files.future_sealed, QEMU, "is sealed against writing"),
        (memory_files.write_sealed, CROSVM, "is sealed against writing"),
        (memory_files.read_only, QEMU, "is not open for reading and writing"),
        (memory_files.pipe, QEMU, "is no file of shared memory"),
    ],
    ids=lambda value: getattr(value, "name", getattr(value, "__name__", "")),
)
def test_region_that_cannot_be_freed_beside_ram_costs_no_balloon(
    make: MakeFile,
    style: Style,
    why: str,
    daemon: Daemon,
    low_mem: LowMemDir,
    make_guest: MakeGuest,
) -> None:
    guest, neighbour = make_guest(replace(SETTINGS, style=style)), make_guest(SETTINGS)
    file = OwnedFd(make(64 * MIB))
    share_beside(guest, (region(BESIDE_AT, 64 * MIB), file.fileno()))

    start_vm(guest, daemon)
    start_vm(neighbour, daemon)
    assert_served([guest, neighbour], low_mem)
    file.close()

    (line,) = said(daemon, "memory-never-freed")
    assert line.startswith(f"64 MiB at {BESIDE_AT:#x} are never freed: their file {why}")
    assert (said(daemon, *OF_VMM), said(daemon, *LOST), errors(daemon)) == ([], [], [])


@fault("up to 32 memory regions in one table")
@pytest.mark.parametrize("style", [QEMU_WITHOUT_SLOTS, CROSVM], ids=lambda style: style.name)
def test_more_regions_in_one_table_than_the_specifications_eight_are_served(
    style: Style, daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    # rust-vmm's front-ends, so Cloud Hypervisor and crosvm, send up to 32 descriptors.
    guest = make_guest(replace(SETTINGS, style=style))
    files = [OwnedFd(memory_files.memfd(PAGE_SIZE)) for _ in range(9)]
    for number, file in enumerate(files):
        at, frontend = BESIDE_AT + number * GIB, 0x7F00_0000_0000 + number * GIB
        share_beside(guest, (region(at, PAGE_SIZE, frontend=frontend), file.fileno()))

    start_vm(guest, daemon)
    assert_served([guest], low_mem)
    assert errors(daemon) == []
    for file in files:
        file.close()


@fault("memory region that cannot be freed")
def test_regions_of_every_kind_at_once_are_each_said_and_cost_no_balloon(
    daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    guest = make_guest(SETTINGS)
    kinds = (
        memory_files.on_disk,
        memory_files.device,
        memory_files.future_sealed,
        memory_files.read_only,
    )
    with ExitStack() as files:
        for number, make in enumerate(kinds):
            file = OwnedFd(make(2 * MIB))
            files.callback(file.close)
            place = region(
                BESIDE_AT + number * GIB,
                2 * MIB,
                frontend=memory_files.FRONTEND_AT + number * GIB,
            )
            share_beside(guest, (place, file.fileno()))
        assert_served([start_vm(guest, daemon)], low_mem)

    assert len(said(daemon, "memory-never-freed")) == 4


def test_pages_given_where_nothing_can_be_freed_are_left_and_said_with_the_remedy(
    daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    # An NVDIMM that the guest has made ordinary memory of (dax kmem).
    guest = make_guest(SETTINGS)
    file = OwnedFd(memory_files.on_disk(64 * MIB))
    os.pwrite(file.fileno(), b"\x5a" * (8 * MIB), 0)
    share_beside(guest, (region(BESIDE_AT, 64 * MIB), file.fileno()))
    start_vm(guest, daemon)
    pfns = np.arange(256, dtype=np.uint32) + np.uint32(BESIDE_AT // 4096)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guest.ram.numbers, "pfns", lambda pages: pfns[: len(pages)])
        low_mem.set_low()
        run_until([guest], lambda: said(daemon, *LOST) != [])
    run_until([guest], lambda: guest.driver.idle)

    assert "that it gave are not freed, as their file is a file on " in said(daemon, *LOST)[0]
    assert "memory-backend-memfd" in said(daemon, *LOST)[0]
    assert os.pread(file.fileno(), 8 * MIB, 0) == b"\x5a" * (8 * MIB)
    file.close()
    assert (guest.disconnected, said(daemon, "guest-fault")) == ("", [])


def assert_said_that_nothing_can_be_freed(daemon: Daemon) -> None:
    region_line, remedy = said(daemon, "memory-never-freed", "nothing-freeable")
    assert region_line.startswith("512 MiB at 0x0 are never freed: their file is ")
    assert remedy.startswith("nothing of its memory can be freed: this VM gets no balloon; give ")


@fault("all of the RAM is of that kind")
def test_ram_on_a_disk_is_served_without_a_balloon_and_its_reports_are_answered(
    daemon: Daemon,
    low_mem: LowMemDir,
    make_guest: MakeGuest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    neighbour = make_guest(SETTINGS)
    keep_ram_in(memory_files.on_disk, VM_MEM_MIB * MIB, monkeypatch)
    guest = make_guest(replace(SETTINGS, population=Population(touched_bytes=32 * MIB)))
    monkeypatch.undo()
    start_vm(guest, daemon)
    start_vm(neighbour, daemon)
    wait_for_device([guest, neighbour], daemon, "vm1")
    held = guest.ram.blocks_bytes()

    blocks = guest.driver.reporting.start()
    run_until([guest, neighbour], lambda: guest.driver.idle)

    assert blocks > 0
    assert guest.ram.blocks_bytes() >= held
    assert_lives_without_balloon(guest, neighbour, low_mem)
    assert_said_that_nothing_can_be_freed(daemon)
    assert errors(daemon) == []


@fault("all of the RAM is of that kind")
@pytest.mark.parametrize("make", [memory_files.future_sealed, memory_files.read_only])
def test_ram_that_no_device_can_map_is_said_and_the_vm_lives(
    make: MakeFile, daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    guest, neighbour = make_guest(SETTINGS), make_guest(SETTINGS)
    ((place, _),) = guest.ram.shared()
    file = OwnedFd(make(place.size_bytes))
    guest.ram.shared = lambda: [(place, file.fileno())]  # type: ignore[method-assign]  # its own
    start_vm(guest, daemon)
    start_vm(neighbour, daemon)

    assert_lives_without_balloon(guest, neighbour, low_mem)
    file.close()
    assert_said_that_nothing_can_be_freed(daemon)
    assert [r for r in daemon.records() if "exit_code" in r] == []


# --- tables that contradict themselves --------------------------------------------------------


def odd_table(name: str, file: OwnedFd) -> Shared:
    places = {
        "overlaps": region(VM_MEM_MIB * MIB - 4096, 2 * MIB),
        "exceeds-its-file": region(BESIDE_AT, 4 * MIB),
        "unaligned": region(BESIDE_AT + 1, 2 * MIB),
    }
    return places[name], file.fileno()


@fault("memory table that contradicts itself")
@pytest.mark.parametrize("name", ["overlaps", "exceeds-its-file", "unaligned"])
def test_table_that_contradicts_itself_is_said_once_and_the_next_one_is_served(
    name: str, daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    guest = make_guest(replace(SETTINGS, style=QEMU_WITHOUT_SLOTS))
    neighbour = start_vm(make_guest(SETTINGS), daemon)
    file = OwnedFd(memory_files.memfd(2 * MIB))
    own = guest.ram.shared
    share_beside(guest, odd_table(name, file))
    start_vm(guest, daemon)

    assert_lives_without_balloon(guest, neighbour, low_mem)
    file.close()
    lines = [line for line in said(daemon, *OF_VMM, vm="vm2") if "memory region at 0x" in line]
    assert len(lines) == 1
    assert lines[0].endswith(": this VM gets no balloon")

    guest.ram.shared = own  # type: ignore[method-assign]  # as before
    guest.reboot()
    assert_served([guest, neighbour], low_mem)


@fault("memory table that contradicts itself")
def test_table_that_contradicts_itself_by_slots_costs_no_connection(
    daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    guest, neighbour = make_guest(SETTINGS), make_guest(SETTINGS)
    file = OwnedFd(memory_files.memfd(2 * MIB))
    share_beside(guest, odd_table("overlaps", file))
    start_vm(guest, daemon)
    start_vm(neighbour, daemon)

    assert_lives_without_balloon(guest, neighbour, low_mem)
    file.close()
    assert len(said(daemon, *OF_VMM)) == 1


def test_region_that_overlaps_is_plugged_while_it_runs_and_the_vm_lives(
    daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    guest, neighbour = (start_vm(make_guest(SETTINGS), daemon) for _ in range(2))
    wait_for_device([guest, neighbour], daemon, "vm1")
    file = OwnedFd(memory_files.memfd(2 * MIB))
    assert guest.frontend is not None

    guest.frontend.share_memory([*guest.ram.shared(), odd_table("overlaps", file)])

    file.close()
    low_mem.set_low()
    run_until([guest, neighbour], lambda: balloon_bytes(neighbour) == MAXIMUM)
    assert guest.disconnected == ""
    assert guest.ram.check().pages_corrupt == 0
    assert len(said(daemon, *OF_VMM)) == 1


# --- what a driver chooses --------------------------------------------------------------------


def pipe_instead(payload: bytes, fds: Sequence[int]) -> tuple[bytes, Sequence[int]]:
    reading, writing = os.pipe2(os.O_CLOEXEC)
    os.close(reading)
    _LEFT_OPEN.append(OwnedFd(writing))
    return payload, [writing] if fds else []


_LEFT_OPEN: list[OwnedFd] = []


@pytest.fixture(autouse=True)
def _close_what_was_sent() -> object:
    yield
    while _LEFT_OPEN:
        _LEFT_OPEN.pop().close()


def without_descriptor(payload: bytes, fds: Sequence[int]) -> tuple[bytes, Sequence[int]]:
    return U64.pack(U64.unpack(payload)[0] | VRING_NOFD_MASK), []


def numbered(num: int) -> Twist:
    return lambda payload, fds: (payload[:4] + num.to_bytes(4, "little"), fds)


def moved(**by: int) -> Twist:
    """The ring elsewhere: misaligned, or outside all memory."""

    def move(payload: bytes, fds: Sequence[int]) -> tuple[bytes, Sequence[int]]:
        index, flags, descriptors, used, available = np.frombuffer(
            payload[:8], np.uint32
        ).tolist() + (np.frombuffer(payload[8:32], np.uint64).tolist())
        addr = VringAddr(
            index,
            flags,
            FrontendAddr(descriptors + by.get("descriptors", 0)),
            FrontendAddr(used + by.get("used", 0)),
            FrontendAddr(available + by.get("available", 0)),
        )
        return addr.encode(), fds

    return move


class Oddity(NamedTuple):
    """What a VMM says because of its driver, and what the log says of it."""

    request: FrontendRequest
    how: Twist
    words: str


ODDITIES = {
    "size-3": Oddity(Q.SET_VRING_NUM, numbered(3), "SET_VRING_NUM: size 3, allowed are powers"),
    "size-0": Oddity(Q.SET_VRING_NUM, numbered(0), "SET_VRING_NUM: size 0, allowed are powers"),
    "size-65536": Oddity(Q.SET_VRING_NUM, numbered(65536), "SET_VRING_NUM: size 65536, allowed"),
    "base": Oddity(Q.SET_VRING_BASE, numbered(1 << 16), "SET_VRING_BASE: base 65536 is over"),
    "descriptors": Oddity(Q.SET_VRING_ADDR, moved(descriptors=8), "is not aligned (virtio 2.7)"),
    "used": Oddity(Q.SET_VRING_ADDR, moved(used=2), "is not aligned (virtio 2.7)"),
    "available": Oddity(Q.SET_VRING_ADDR, moved(available=1), "is not aligned (virtio 2.7)"),
    "nowhere": Oddity(Q.SET_VRING_ADDR, moved(used=1 << 50), "cannot hold a ring"),
    "kick": Oddity(Q.SET_VRING_KICK, pipe_instead, "vring 0's descriptor is no eventfd"),
    "polled": Oddity(Q.SET_VRING_KICK, without_descriptor, "polled rings are not served"),
    "call": Oddity(Q.SET_VRING_CALL, pipe_instead, "vring 0's descriptor is no eventfd"),
}


@fault("kick, call or err that is no eventfd; channel that is no Unix socket")
@fault("ring of size 0")
@pytest.mark.parametrize(
    ("name", "style"),
    [
        *((name, QEMU) for name in ODDITIES),
        *((name, CROSVM) for name in ("size-3", "kick", "call")),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_rings_that_cannot_be_served_are_not_and_the_next_drivers_are(
    name: str, style: Style, daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    oddity = ODDITIES[name]
    neighbour = start_vm(make_guest(SETTINGS), daemon)
    guest = make_guest(replace(SETTINGS, style=style))
    guest.connect(str(daemon.config.socket))
    assert guest.frontend is not None
    with pytest.MonkeyPatch.context() as patch:
        twist(guest.frontend, oddity.request, oddity.how, patch)
        guest.bind()
        assert_lives_without_balloon(guest, neighbour, low_mem)
        guest.frontend.stop()
        guest.driver.reset()

    lines = said(daemon, *OF_VMM, "guest-fault", vm="vm2")
    assert [line for line in lines if oddity.words in line] != []
    # Bound, paused and resumed: each is said once all the same. A ring's place is each device's.
    once = said(daemon, *OF_VMM, vm="vm2")
    assert len(once) == len(set(once)) <= 8
    assert [line for line in lines if "closing" in line] == []

    guest.bind()
    assert_served([guest, neighbour], low_mem)


@fault("kick, call or err that is no eventfd; channel that is no Unix socket")
@pytest.mark.parametrize("request_", [Q.SET_VRING_ERR, Q.SET_BACKEND_REQ_FD])
def test_descriptor_of_the_wrong_kind_costs_no_connection(
    request_: FrontendRequest,
    daemon: Daemon,
    low_mem: LowMemDir,
    make_guest: MakeGuest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guest = start_vm(make_guest(SETTINGS), daemon)
    assert guest.frontend is not None
    payload = b"" if request_ is Q.SET_BACKEND_REQ_FD else U64.pack(0)
    _, (descriptor,) = pipe_instead(payload, [0])

    guest.frontend.requests.tell(request_, payload, [descriptor])

    # Without the channel nobody is told of a target; a driver that looks by itself finds it.
    def look() -> bool:
        guest.driver.config_changed()
        return balloon_bytes(guest) == MAXIMUM

    low_mem.set_low()
    run_until([guest], look)
    assert guest.disconnected == ""
    assert [line for line in said(daemon, *OF_VMM) if "descriptor is no" in line] != []


# --- what a VMM provides beyond what a balloon has --------------------------------------------


@fault("more queues than a balloon has; a larger config space")
@pytest.mark.parametrize("style", [QEMU, CROSVM], ids=lambda style: style.name)
def test_vmm_with_more_queues_than_a_balloon_has_is_served(
    style: Style, daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    # One that does not ask how many there are (GET_QUEUE_NUM), as MQ is not negotiated.
    quiet = replace(style, protocol_features=style.protocol_features & ~ProtocolFeature.MQ)
    guest = start_vm(make_guest(replace(SETTINGS, style=quiet, num_vqs=8)), daemon)

    assert_served([guest], low_mem)
    guest.pause()
    guest.resume()
    assert guest.frontend is not None
    base = guest.frontend.requests.ask(Q.GET_VRING_BASE, VringState(7, 0).encode())
    assert base.payload == VringState(7, 0).encode()
    assert {line.partition(": ")[2] for line in said(daemon, *OF_VMM)} <= {
        f"vring {number}, a balloon has 5" for number in (5, 6, 7)
    }


@fault("more queues than a balloon has; a larger config space")
def test_config_space_larger_than_a_balloons_reads_0_and_takes_actual(
    daemon: Daemon, make_guest: MakeGuest
) -> None:
    guest = start_vm(make_guest(SETTINGS), daemon)
    assert guest.frontend is not None
    content = bytes(4) + (4711).to_bytes(4, "little") + b"\xff" * 56

    guest.frontend.requests.tell(Q.SET_CONFIG, ConfigAccess(0, 0, content).encode())
    asked = ConfigAccess(0, 0, bytes(64)).encode()
    got = decode_config_access(guest.frontend.requests.ask(Q.GET_CONFIG, asked))
    beyond = guest.frontend.requests.ask(Q.GET_CONFIG, ConfigAccess(60, 0, bytes(8)).encode())

    assert got.content == bytes(4) + (4711).to_bytes(4, "little") + bytes(56)
    assert decode_config_access(beyond).content == bytes(8)
    guest.frontend.requests.tell(Q.SET_CONFIG, ConfigAccess(16, 0, b"\xff" * 8).encode())
    assert said(daemon, *OF_VMM) == []


# --- features and requests that were not offered ----------------------------------------------


@fault("features of the device that were not offered")
@pytest.mark.parametrize("bit", [3, 29, 63])
def test_feature_that_was_not_offered_is_said_once_and_the_vm_lives(
    bit: int, daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    neighbour = start_vm(make_guest(SETTINGS), daemon)
    guest = make_guest(replace(SETTINGS, driver=DriverSettings(features=2**64 - 1)))
    guest.connect(str(daemon.config.socket))
    assert guest.frontend is not None
    offered = guest.frontend.negotiated.features & (OFFERED_FEATURES | BalloonFeature.VERSION_1)
    negotiated = guest.frontend.negotiated
    guest.frontend.negotiated = replace(negotiated, features=offered | 1 << bit)
    guest.bind()

    assert_lives_without_balloon(guest, neighbour, low_mem)
    assert said(daemon, *OF_VMM, vm="vm2") == [
        f"it acknowledges features that were not offered ({1 << bit:#x}): this VM gets no balloon"
    ]

    guest.frontend.negotiated = replace(negotiated, features=offered)
    guest.reboot()
    assert_served([guest, neighbour], low_mem)


@fault("other request of a feature that was not offered")
def test_protocol_features_that_were_not_offered_are_gone_on_without(
    daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    guest = make_guest(SETTINGS)
    guest.connect(str(daemon.config.socket))
    assert guest.frontend is not None

    guest.frontend.requests.tell(Q.SET_PROTOCOL_FEATURES, U64.pack(2**64 - 1))
    guest.bind()

    assert_served([guest], low_mem)
    assert len(said(daemon, *OF_VMM)) == 1
    assert said(daemon, *OF_VMM)[0].endswith("was not offered; going on without")


@fault("other request of a feature that was not offered")
def test_requests_that_were_not_offered_are_refused_and_no_more(
    daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    guest = start_vm(make_guest(SETTINGS), daemon)
    assert guest.frontend is not None
    wait_for_device([guest], daemon, "vm1")
    before = len(fds_but_figures(daemon))
    requests = (
        Q.SET_LOG_FD,
        Q.SEND_RARP,
        Q.NET_SET_MTU,
        Q.SET_VRING_ENDIAN,
        Q.SET_INFLIGHT_FD,
        Q.GPU_SET_SOCKET,
        Q.VRING_KICK,
        Q.POSTCOPY_LISTEN,
    )
    file = OwnedFd(memory_files.memfd(4096))

    for request in requests:
        with pytest.raises(BackendError, match=f"{request.name} refused with status 1"):
            guest.frontend.requests.tell(request, bytes(8), [file.fileno()])
    file.close()

    # A child closes what a VMM has sent, in its own time. Another one may have been idle before.
    run_until([guest], lambda: len(fds_but_figures(daemon)) <= before)
    assert_served([guest], low_mem)
    assert said(daemon, *OF_VMM) == [
        f"{request.name}: is not offered; refused" for request in requests
    ]


# --- a process of ours without room for descriptors -------------------------------------------


@fault("no descriptor left for a message's own")
@pytest.mark.parametrize("room", [0, 4])
def test_no_room_for_a_vmms_descriptors_the_vm_lives_and_is_served_once_there_is(
    room: int, daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    neighbour = start_vm(make_guest(SETTINGS), daemon)
    wait_for_device([neighbour], daemon, "vm1")
    guest = make_guest(replace(SETTINGS, style=QEMU_WITHOUT_SLOTS))
    guest.connect(str(daemon.config.socket))

    with limited(daemon.pid, resource.RLIMIT_NOFILE, limit_for_room(at_rest(daemon), room)):
        guest.bind()
        run_until(
            [guest, neighbour],
            lambda: any("found no room here" in line for line in said(daemon, *OF_VMM, vm="vm2")),
        )
    assert guest.disconnected == ""
    guest.reboot()
    assert_served([guest, neighbour], low_mem)


@fault("no descriptor left for a message's own")
@pytest.mark.parametrize("style", STYLES.values(), ids=lambda style: style.name)
def test_no_room_for_what_a_vmm_sends_at_its_start_costs_no_connection(
    style: Style, daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    neighbour = start_vm(make_guest(SETTINGS), daemon)
    wait_for_device([neighbour], daemon, "vm1")
    guest = make_guest(replace(SETTINGS, style=style))

    # One for the connection itself.
    with limited(daemon.pid, resource.RLIMIT_NOFILE, limit_for_room(at_rest(daemon), 1)):
        guest.connect(str(daemon.config.socket))
        guest.bind()
    low_mem.set_low()
    run_until([guest, neighbour], lambda: balloon_bytes(neighbour) == MAXIMUM)

    guest.pause()
    guest.resume()
    assert guest.disconnected == ""
    assert any("found no room here" in line for line in said(daemon, *OF_VMM, vm="vm2"))


# --- a VMM that never gives its memory --------------------------------------------------------

NOT_SHARED = "its VMM is connected but has not given its guest's memory so far"


def named(daemon: Daemon, vm: str = "vm1") -> list[str]:
    return [line for line in said(daemon, *OF_VMM, vm=vm) if NOT_SHARED in line]


@fault("never gives its memory: not shared, or no driver in the guest")
def test_vmm_that_never_gives_memory_is_named_once_with_the_likely_reason(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    # At speed 60 the 60 s are one.
    daemon = start_daemon("--speed", "60")
    waiting, served = make_guest(SETTINGS), make_guest(SETTINGS)
    waiting.connect(str(daemon.config.socket))
    start_vm(served, daemon)

    run_until([waiting, served], lambda: named(daemon) != [])

    (line,) = named(daemon)
    assert "its guest has no balloon driver running yet, or the memory is not shared" in line
    assert "share=on" in line
    assert named(daemon, "vm2") == []
    # Firmware and a boot menu may take as long: it is served whenever it comes.
    waiting.bind()
    low_mem.set_low()
    run_until([waiting, served], lambda: balloon_bytes(waiting) == MAXIMUM)
    assert len(named(daemon)) == 1


@fault("never gives its memory: not shared, or no driver in the guest")
def test_vmm_whose_driver_runs_without_memory_is_told_that_it_is_not_shared(
    start_daemon: StartDaemon, make_guest: MakeGuest
) -> None:
    daemon = start_daemon("--speed", "60")
    guest = make_guest(SETTINGS)
    guest.connect(str(daemon.config.socket))
    assert guest.frontend is not None
    guest.frontend.requests.tell(Q.SET_FEATURES, U64.pack(OFFERED_FEATURES))

    run_until([guest], lambda: named(daemon) != [])

    assert "no balloon driver" not in named(daemon)[0]
    assert "the memory is not shared (QEMU: share=on" in named(daemon)[0]


@fault("never gives its memory: not shared, or no driver in the guest")
def test_vmm_that_went_before_its_minute_was_over_is_not_named(
    start_daemon: StartDaemon, make_guest: MakeGuest
) -> None:
    daemon = start_daemon("--speed", "60")
    gone, waiting = make_guest(SETTINGS), make_guest(SETTINGS)
    gone.connect(str(daemon.config.socket))
    gone.hang_up()
    waiting.connect(str(daemon.config.socket))

    run_until([waiting], lambda: named(daemon, "vm2") != [])

    assert named(daemon) == []
