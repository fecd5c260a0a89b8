"""QEMU's balloon by its monitor, over real sockets, with a monitor that a script plays."""

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from balloon_daemon.events.driven import Fault
from balloon_daemon.guests.driven import qmp_memory, qmp_wire
from balloon_daemon.guests.driven.control import ControlError, Notice
from balloon_daemon.guests.driven.qmp import QmpControl, least_bytes
from balloon_daemon.guests.seam import Ability, GuestState
from balloon_daemon.units import GIB, MIB
from tests.harness.faults import fault
from tests.harness.scripted_monitor import Misdeed, ScriptedMonitor, ScriptedVm
from tests.harness.waiting import HANG_S

T = TypeVar("T")
SOON_S = 0.2
"""Stands for the 5 s that a VMM is given to answer."""


class Scene:
    """A monitor, and a control of it."""

    def __init__(self, monitor: ScriptedMonitor) -> None:
        self.monitor = monitor
        self.vm = monitor.vm
        self.notices: list[Notice] = []
        self.control = QmpControl(str(monitor.path))

    async def notice(self, notice: Notice) -> None:
        """Waits for a notice."""
        async with asyncio.timeout(HANG_S):
            while notice not in self.notices:
                await asyncio.sleep(0.001)

    async def fault_of(self, call: Awaitable[object]) -> Fault:
        """The fault that a call fails with."""
        with pytest.raises(ControlError) as caught:
            await call
        return caught.value.fault


def play(
    tmp_path: Path, scene: Callable[[Scene], Awaitable[T]], vm: ScriptedVm | None = None
) -> T:
    """Plays a scene with a monitor that listens."""

    async def run() -> T:
        async with ScriptedMonitor(tmp_path / "qmp", vm) as monitor:
            here = Scene(monitor)
            try:
                async with asyncio.timeout(HANG_S):
                    return await scene(here)
            finally:
                here.control.close()

    return asyncio.run(run())


def booted(**changes: Any) -> ScriptedVm:
    """A VM of 1 GiB with a driver."""
    vm = ScriptedVm(**changes)
    vm.boot()
    return vm


def test_vm_is_found_as_it_is(tmp_path: Path) -> None:
    async def scene(here: Scene) -> None:
        found = await here.control.open(here.notices.append)
        assert (found.vm_mem_bytes, found.balloon_bytes) == (GIB, 256 * MIB)
        assert found.state is GuestState.RUNNING
        assert found.can == {Ability.STATS, Ability.DEFLATE_ON_OOM, Ability.DISK_READS}
        assert (found.pid, found.memory_file) == (os.getpid(), "")

    play(tmp_path, scene, booted(actual=768 * MIB))


@fault("a QEMU monitor's socket was made")
def test_process_that_has_not_the_vms_threads_is_not_its_vmm(tmp_path: Path) -> None:
    """libvirt listens itself, and hands QEMU the socket."""

    async def scene(here: Scene) -> int | None:
        return (await here.control.open(here.notices.append)).pid

    assert play(tmp_path, scene, booted(thread_id=1)) is None


def test_memory_of_one_memfd_is_found_among_the_vmms_descriptors(tmp_path: Path) -> None:
    async def scene(here: Scene) -> str:
        here.vm.properties["/objects/mem0", "type"] = "memory-backend-memfd"
        here.vm.properties["/objects/mem0", "hugetlb"] = False
        return (await here.control.open(here.notices.append)).memory_file

    fd = os.memfd_create("memory-backend-memfd")
    try:
        assert play(tmp_path, scene, booted()) == f"/proc/{os.getpid()}/fd/{fd}"
    finally:
        os.close(fd)


@pytest.mark.parametrize("machine", ["/objects/pc.ram", "/objects/mem0", "", None])
def test_memfd_that_is_not_the_machines_memory_is_not_taken_for_it(
    tmp_path: Path, machine: str | None
) -> None:
    """The machine's memory is of no file, and a shared memory device (ivshmem) has a memfd."""

    async def scene(here: Scene) -> str:
        here.vm.properties["/objects/mem0", "type"] = "memory-backend-memfd"
        if machine is not None:  # Before QEMU 5.0 the machine has no such property.
            here.vm.properties["/machine", "memory-backend"] = machine
        return (await here.control.open(here.notices.append)).memory_file

    fd = os.memfd_create("memory-backend-memfd")
    try:
        found = play(tmp_path, scene, booted(memdevs=["mem0", "pc.ram"]))
    finally:
        os.close(fd)
    assert found == ("" if machine == "/objects/pc.ram" else f"/proc/{os.getpid()}/fd/{fd}")


def test_memory_of_two_files_has_no_one_file(tmp_path: Path) -> None:
    async def scene(here: Scene) -> str:
        for name in here.vm.memdevs:
            here.vm.properties[f"/objects/{name}", "type"] = "memory-backend-memfd"
        return (await here.control.open(here.notices.append)).memory_file

    assert play(tmp_path, scene, booted(memdevs=["mem0", "mem1"])) == ""


def test_memory_of_no_object_has_no_file(tmp_path: Path) -> None:
    async def scene(here: Scene) -> str:
        return (await here.control.open(here.notices.append)).memory_file

    assert play(tmp_path, scene, booted(memdevs=[])) == ""


# --- targets ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("balloon_bytes", "told"),
    [
        (0, GIB),
        (256 * MIB, 768 * MIB),
        (256 * MIB + 1, 768 * MIB),  # a whole page more for the guest
        (GIB, 64 * MIB),  # 0 is refused, and would be the guest's end
        (2 * GIB, 64 * MIB),
    ],
)
def test_qemu_is_told_the_size_without_the_balloon(
    tmp_path: Path, balloon_bytes: int, told: int
) -> None:
    async def scene(here: Scene) -> None:
        await here.control.open(here.notices.append)
        before = len(here.vm.commands)
        await here.control.set_balloon(balloon_bytes)
        # One command, so one way there and back: this machine's size cannot change.
        assert here.vm.commands[before:] == ["balloon"]
        assert [size for size, _ in here.vm.targets] == [told]

    play(tmp_path, scene, booted())


@fault("a QEMU's guest has DIMMs")
def test_size_is_read_anew_before_each_command_where_dimms_can_be_plugged(
    tmp_path: Path,
) -> None:
    async def scene(here: Scene) -> None:
        found = await here.control.open(here.notices.append)
        await here.control.set_balloon(256 * MIB)
        here.vm.dimms.append(128 * MIB)
        await here.control.set_balloon(256 * MIB)
        here.vm.dimms.clear()
        await here.control.set_balloon(256 * MIB)
        assert found.vm_mem_bytes == GIB
        assert [size // MIB for size, _ in here.vm.targets] == [768, 896, 768]

    play(tmp_path, scene, booted(slots=4))


def test_guest_without_deflate_on_oom_is_left_more(tmp_path: Path) -> None:
    async def scene(here: Scene) -> None:
        found = await here.control.open(here.notices.append)
        await here.control.set_balloon(GIB)
        assert Ability.DEFLATE_ON_OOM not in found.can
        assert [size // MIB for size, _ in here.vm.targets] == [256]

    play(tmp_path, scene, booted(deflate_on_oom=False))


@pytest.mark.parametrize("size_mib", [1, 300, 500, 512, 1024, 1536, 1537, 4096, 65536])
def test_floor_is_never_more_than_what_the_seeds_policy_leaves(size_mib: int) -> None:
    size = size_mib * MIB
    seed_leaves = GIB if size_mib > 1536 else size // 2
    for deflates in (True, False):
        least = least_bytes(size, deflate_on_oom=deflates)
        assert least > 0
        assert least <= seed_leaves or (not deflates and least == size // 4)


def test_plugged_memory_counts_without_an_event(tmp_path: Path) -> None:
    async def scene(here: Scene) -> None:
        await here.control.open(here.notices.append)
        await here.control.set_balloon(256 * MIB)
        here.vm.dimms.append(128 * MIB)
        here.vm.actual += 128 * MIB
        sample = await here.control.sample()
        assert (sample.vm_mem_bytes, sample.balloon_bytes) == (GIB + 128 * MIB, 256 * MIB)

    play(tmp_path, scene, booted(slots=4))


def test_virtio_mem_is_no_part_of_the_size_and_known(tmp_path: Path) -> None:
    async def scene(here: Scene) -> None:
        rows = [
            {"type": kind, "data": {"id": kind, "size": size}}
            for kind, size in (("virtio-mem", GIB), ("nvdimm", MIB), ("dimm", 128 * MIB))
        ]
        # This kind has no size.
        rows.append({"type": "hv-balloon", "data": {"max-size": GIB}})
        here.vm.answers["query-memory-devices"] = rows
        found = await here.control.open(here.notices.append)
        sample = await here.control.sample()
        assert found.vm_mem_bytes == sample.vm_mem_bytes == GIB + 128 * MIB
        assert sample.apart_bytes == GIB + MIB

    play(tmp_path, scene, booted())


# --- the guest's states -------------------------------------------------------------------------


def test_guest_without_a_driver_has_no_balloon_whatever_qemu_says(tmp_path: Path) -> None:
    async def scene(here: Scene) -> None:
        found = await here.control.open(here.notices.append)
        await here.control.set_balloon(256 * MIB)
        sample = await here.control.sample()
        assert [(each.state, each.balloon_bytes) for each in (found, sample)] == [
            (GuestState.NO_DRIVER, None)
        ] * 2
        assert sample.stats is None

    play(tmp_path, scene)


@fault("a QEMU keeps")
def test_reset_is_told_once_and_forgets_the_size_until_a_driver_listens(tmp_path: Path) -> None:
    async def scene(here: Scene) -> None:
        await here.control.open(here.notices.append)
        await here.control.set_balloon(256 * MIB)
        here.monitor.reset()
        await here.notice(Notice.RESET)
        booting = await here.control.sample()
        here.vm.actual = GIB
        here.vm.send_stats(free_memory=900 * MIB)
        running = await here.control.sample()
        assert here.notices.count(Notice.RESET) == 1
        assert (booting.state, booting.balloon_bytes) == (GuestState.NO_DRIVER, None)
        assert (running.state, running.balloon_bytes) == (GuestState.RUNNING, 0)

    play(tmp_path, scene, booted())


@fault("a QEMU keeps")
def test_change_from_before_a_reset_that_comes_after_it_tells_of_no_driver(
    tmp_path: Path,
) -> None:
    async def scene(here: Scene) -> None:
        await here.control.open(here.notices.append)
        before = time.time() - 1
        here.monitor.reset()
        here.monitor.send_event("BALLOON_CHANGE", before, actual=700 * MIB)
        await here.notice(Notice.CHANGED)
        old = (await here.control.sample()).state
        here.monitor.send_event("BALLOON_CHANGE", before + 9, actual=GIB)
        await asyncio.sleep(0)
        new = (await here.control.sample()).state
        assert (old, new) == (GuestState.NO_DRIVER, GuestState.RUNNING)

    play(tmp_path, scene, booted())


@fault("a QEMU's guest is paused")
def test_paused_guest_takes_targets_and_is_told_from_a_running_one(tmp_path: Path) -> None:
    async def scene(here: Scene) -> None:
        await here.control.open(here.notices.append)
        here.vm.running = False
        here.monitor.send_event("STOP")
        await here.notice(Notice.CHANGED)
        await here.control.set_balloon(256 * MIB)
        paused = await here.control.sample()
        here.vm.running = True
        assert paused.state is GuestState.PAUSED
        assert (await here.control.sample()).state is GuestState.RUNNING

    play(tmp_path, scene, booted())


@pytest.mark.parametrize(
    "event", ["STOP", "RESUME", "SUSPEND", "WAKEUP", "BALLOON_CHANGE", "ACPI_DEVICE_OST"]
)
def test_event_that_changes_figures_is_told(tmp_path: Path, event: str) -> None:
    async def scene(here: Scene) -> None:
        await here.control.open(here.notices.append)
        here.monitor.send_event(event)
        await here.notice(Notice.CHANGED)

    play(tmp_path, scene, booted())


@fault("a QEMU reports half-written")
def test_half_written_size_is_read_again_soon(tmp_path: Path) -> None:
    async def scene(here: Scene) -> None:
        await here.control.open(here.notices.append)
        await here.control.set_balloon(256 * MIB)
        await here.control.sample()
        here.vm.actual = 1 * MIB
        torn = await here.control.sample()
        here.vm.actual = 768 * MIB
        await here.notice(Notice.CHANGED)
        assert torn.balloon_bytes == 256 * MIB
        assert (await here.control.sample()).balloon_bytes == 256 * MIB

    play(tmp_path, scene, booted())


def test_guest_that_takes_memory_back_by_itself_is_seen(tmp_path: Path) -> None:
    async def scene(here: Scene) -> None:
        await here.control.open(here.notices.append)
        await here.control.set_balloon(256 * MIB)
        await here.control.sample()
        here.vm.actual = 900 * MIB
        await here.control.sample()
        await here.notice(Notice.CHANGED)
        assert (await here.control.sample()).balloon_bytes == GIB - 900 * MIB
        # Nothing makes the guest inflate again but another command.
        assert len(here.vm.targets) == 1

    play(tmp_path, scene, booted())


# --- statistics ---------------------------------------------------------------------------------


def test_statistics_come_once_each_with_the_time_of_the_guest(tmp_path: Path) -> None:
    async def scene(here: Scene) -> None:
        await here.control.open(here.notices.append)
        here.vm.disk_reads = [3, 4]
        here.vm.send_stats(free_memory=5 * MIB)
        here.vm.last_update = int(time.time()) - 60
        first = (await here.control.sample()).stats
        again = (await here.control.sample()).stats
        assert first is not None
        assert (first.free_bytes, first.oom_kills, first.disk_read_bytes) == (5 * MIB, None, 7)
        assert 59 < time.monotonic() - first.at_s < 62 + HANG_S
        assert again is None

    play(tmp_path, scene, booted())


def test_watch_sets_the_interval_in_whole_seconds(tmp_path: Path) -> None:
    async def scene(here: Scene) -> list[int]:
        await here.control.open(here.notices.append)
        set_to = []
        for every_s in (1.0, 0.2, 4.0, None):
            await here.control.watch(every_s)
            set_to.append(here.vm.interval_s)
        return set_to

    assert play(tmp_path, scene, booted(interval_s=30)) == [1, 1, 4, 30]


def test_device_whose_guest_has_no_driver_asks_for_statistics_now_and_then(tmp_path: Path) -> None:
    """A migration brings a driver along that sends none of itself: no other sign tells of it."""

    async def scene(here: Scene) -> None:
        await here.control.open(here.notices.append)
        without = here.vm.interval_s
        here.vm.send_stats(free_memory=5 * MIB)
        first = await here.control.sample()
        assert (without, here.vm.interval_s) == (5, 0)
        # A driver may have begun a moment ago, so a balloon from nowhere counts when confirmed.
        assert (first.state, first.balloon_bytes) == (GuestState.RUNNING, None)
        await here.notice(Notice.CHANGED)
        assert (await here.control.sample()).balloon_bytes == 256 * MIB

    play(tmp_path, scene, ScriptedVm(actual=768 * MIB))


@fault("a QEMU's statistics stop")
def test_interval_that_is_gone_is_set_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a migration's destination it is 0 again, and no event tells."""
    now = time.monotonic()
    monkeypatch.setattr("balloon_daemon.guests.driven.qmp.time.monotonic", lambda: now)

    async def scene(here: Scene) -> None:
        nonlocal now
        await here.control.open(here.notices.append)
        await here.control.watch(1)
        here.vm.interval_s = 0
        await here.control.sample()
        early = here.vm.interval_s
        now += 4
        await here.control.sample()
        assert (early, here.vm.interval_s) == (0, 1)

    play(tmp_path, scene, booted())


# --- devices that come and go -------------------------------------------------------------------


@pytest.mark.parametrize("place", ["/machine/peripheral", "/machine/peripheral-anon"])
@pytest.mark.parametrize("kind", ["virtio-balloon-device", "virtio-balloon-pci-non-transitional"])
def test_balloon_of_every_transport_is_found_with_an_id_and_without(
    tmp_path: Path, kind: str, place: str
) -> None:
    async def scene(here: Scene) -> None:
        assert (await here.control.open(here.notices.append)).state is GuestState.RUNNING

    play(tmp_path, scene, booted(devices=[kind], place=place))


@fault("a QEMU's balloon is unplugged")
def test_balloon_that_is_unplugged_and_plugged_again_is_driven_again(tmp_path: Path) -> None:
    async def scene(here: Scene) -> None:
        await here.control.open(here.notices.append)
        await here.control.watch(1)
        here.vm.devices = ["virtio-blk-pci"]
        here.monitor.send_event("DEVICE_DELETED", path="/machine/peripheral-anon/device[1]")
        await here.notice(Notice.CHANGED)
        gone = [await here.fault_of(here.control.sample()) for _ in range(2)]
        gone.append(await here.fault_of(here.control.set_balloon(0)))
        here.vm.devices = ["virtio-blk-pci", "virtio-net-pci", "virtio-balloon-pci"]
        here.vm.interval_s = 0
        sample = await here.control.sample()
        assert gone == [Fault.NO_BALLOON] * 3
        assert sample.state is GuestState.RUNNING
        assert here.vm.interval_s == 1

    play(tmp_path, scene, booted())


@fault("a QEMU's VM has huge pages")
@pytest.mark.parametrize(
    ("devices", "fault"),
    [
        (["virtio-blk-pci"], Fault.NO_BALLOON),
        (["vfio-pci-nohotplug"], Fault.PINNED),
    ],
)
def test_vm_whose_devices_leave_no_balloon_is_refused(
    tmp_path: Path, devices: list[str], fault: Fault
) -> None:
    async def scene(here: Scene) -> Fault:
        return await here.fault_of(here.control.open(here.notices.append))

    assert play(tmp_path, scene, booted(devices=devices)) is fault


@fault("a QEMU's VM has huge pages")
@pytest.mark.parametrize(
    "devices",
    [
        ["virtio-balloon-pci", "vfio-pci"],
        ["vhost-vdpa-device-pci", "virtio-balloon-pci"],
    ],
)
def test_vm_with_an_assigned_device_is_found_as_one_that_must_not_be_driven(
    tmp_path: Path, devices: list[str]
) -> None:
    async def scene(here: Scene) -> None:
        found = await here.control.open(here.notices.append)
        assert found.against is not None
        assert found.against.fault is Fault.PINNED
        # The VM's balloon can be set all the same, to give back what an earlier balloond took.
        await here.control.set_balloon(MIB)
        assert here.vm.targets[-1][0] == GIB - MIB
        # Nothing else of the VM was changed.
        assert here.vm.interval_s == 0

    play(tmp_path, scene, booted(devices=devices))


@fault("a QEMU's VM has huge pages")
def test_balloon_that_comes_anew_with_an_assigned_device_is_not_driven(tmp_path: Path) -> None:
    async def scene(here: Scene) -> None:
        await here.control.open(here.notices.append)
        here.vm.devices = ["virtio-blk-pci"]
        assert await here.fault_of(here.control.sample()) is Fault.NO_BALLOON
        here.vm.devices = ["virtio-balloon-pci", "vfio-pci"]
        assert await here.fault_of(here.control.sample()) is Fault.PINNED

    play(tmp_path, scene, booted())


@fault("a QEMU's VM has huge pages")
def test_memory_in_huge_pages_is_refused(tmp_path: Path) -> None:
    name = "\x1b[2J" + "m" * 10_000

    async def scene(here: Scene) -> None:
        here.vm.properties[f"/objects/{name}", "hugetlb"] = True
        with pytest.raises(ControlError) as caught:
            await here.control.open(here.notices.append)
        assert caught.value.fault is Fault.HUGETLB
        assert caught.value.detail.startswith("\\x1b[2Jmmm")
        assert len(caught.value.detail) < 300

    play(tmp_path, scene, booted(memdevs=[name]))


@fault("a QEMU's VM has huge pages")
def test_memory_in_a_file_on_hugetlbfs_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``-mem-path /dev/hugepages`` says nothing of huge pages by itself."""
    table = tmp_path / "mountinfo"
    table.write_text("1 0 0:1 / /dev/hugepages rw - hugetlbfs none rw\n")
    monkeypatch.setattr(qmp_memory, "MOUNTS", qmp_memory.Mounts(table))

    async def scene(here: Scene) -> Fault:
        here.vm.properties["/objects/mem0", "type"] = "memory-backend-file"
        here.vm.properties["/objects/mem0", "mem-path"] = "/dev/hugepages/vm"
        return await here.fault_of(here.control.open(here.notices.append))

    assert play(tmp_path, scene, booted()) is Fault.HUGETLB


# --- memory that a VMM reads --------------------------------------------------------------------


@fault("a snapshot or a migration to a file")
@pytest.mark.parametrize("end", ["completed", "cancelled", "failed"])
def test_end_of_a_migration_is_told_once(tmp_path: Path, end: str) -> None:
    async def scene(here: Scene) -> None:
        await here.control.open(here.notices.append)
        here.vm.migration = {"status": "active"}
        await here.control.sample()
        during = list(here.notices)
        here.vm.migration = {"status": end}
        await here.control.sample()
        await here.control.sample()
        assert (during, here.notices) == ([], [Notice.REFILLED])

    play(tmp_path, scene, booted())


@fault("a snapshot or a migration to a file")
def test_second_snapshot_is_told_too(tmp_path: Path) -> None:
    async def scene(here: Scene) -> list[Notice]:
        await here.control.open(here.notices.append)
        for transferred in (107330587, 107330317):
            here.vm.migration = {"status": "completed", "ram": {"transferred": transferred}}
            await here.control.sample()
        return here.notices

    assert play(tmp_path, scene, booted()) == [Notice.REFILLED] * 2


@fault("a snapshot or a migration to a file")
def test_migration_that_is_cancelled_between_two_samples_is_told(tmp_path: Path) -> None:
    async def scene(here: Scene) -> None:
        await here.control.open(here.notices.append)
        assert here.vm.capabilities == []  # Who only looks changes nothing.
        await here.control.sample()
        await here.control.sample()
        assert here.vm.capabilities == ["events"]
        others: tuple[object, ...] = ("setup", "active", "cancelling", None, [], {})
        for status in others:
            here.monitor.send_event("MIGRATION", status=status)
        await here.control.sample()
        assert here.notices == []
        here.monitor.send_event("MIGRATION", status="cancelled")
        await here.notice(Notice.REFILLED)

    play(tmp_path, scene, booted(migration={"status": "cancelled"}))


def test_qemu_that_migrates_is_asked_for_events_afterwards(tmp_path: Path) -> None:
    async def scene(here: Scene) -> None:
        await here.control.open(here.notices.append)
        await here.control.sample()
        assert here.vm.capabilities == []
        here.vm.migration = {"status": "cancelled"}
        await here.control.sample()
        assert here.vm.capabilities == ["events"]

    play(tmp_path, scene, booted(migration={"status": "active"}))


@fault("a snapshot or a migration to a file")
@pytest.mark.parametrize("event", ["RESUME", "DUMP_COMPLETED"])
def test_snapshot_that_is_loaded_and_a_dump_are_told(tmp_path: Path, event: str) -> None:
    async def scene(here: Scene) -> None:
        await here.control.open(here.notices.append)
        here.monitor.send_event(event)
        await here.notice(Notice.REFILLED)

    play(tmp_path, scene, booted(migration={"status": "completed"}))


def test_migration_from_before_is_no_news(tmp_path: Path) -> None:
    async def scene(here: Scene) -> list[Notice]:
        await here.control.open(here.notices.append)
        await here.control.sample()
        return here.notices

    assert play(tmp_path, scene, booted(migration={"status": "completed"})) == []


# --- a VMM that cannot be reached ---------------------------------------------------------------


def fault_at(path: Path) -> Fault:
    """Why nothing at this path can be driven."""

    async def attempt() -> Fault:
        with pytest.raises(ControlError) as caught:
            await QmpControl(str(path)).open(lambda notice: None)
        return caught.value.fault

    return asyncio.run(attempt())


def test_path_without_a_monitor_is_not_there(tmp_path: Path) -> None:
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / "left"))
    left.close()
    places = ("nothing", "left", "no/directory", "x" * 200)
    assert [fault_at(tmp_path / place) for place in places] == [Fault.NOT_THERE] * 4


def test_path_of_a_file_is_no_socket(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert fault_at(tmp_path / "file") is Fault.NOT_A_SOCKET
    assert fault_at(tmp_path) is Fault.NOT_A_SOCKET


@pytest.mark.parametrize("kind", [socket.SOCK_SEQPACKET, socket.SOCK_DGRAM])
def test_socket_of_another_type_is_no_monitor(tmp_path: Path, kind: socket.SocketKind) -> None:
    """crosvm's control socket is one of packets."""
    with socket.socket(socket.AF_UNIX, kind) as packets:
        packets.bind(str(tmp_path / "packets"))
        assert fault_at(tmp_path / "packets") is Fault.NOT_A_SOCKET


@fault("a QEMU monitor is held")
def test_monitor_whose_backlog_is_full_is_held(tmp_path: Path) -> None:
    path = tmp_path / "qmp"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as other:
        listener.bind(str(path))
        listener.listen(0)
        other.connect(str(path))
        assert fault_at(path) is Fault.HELD


@fault("a QEMU monitor is held")
def test_monitor_that_serves_somebody_else_is_held_and_runs_nothing_of_ours_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qmp_wire, "CALL_WITHIN_S", SOON_S)

    async def scene(here: Scene) -> None:
        first = await qmp_wire.Monitor.connect(str(here.monitor.path), None, lambda event: None)
        before = list(here.vm.commands)
        fault = await here.fault_of(here.control.open(here.notices.append))
        first.close()
        await QmpControl(str(here.monitor.path)).open(here.notices.append)
        # The first command after the holder has left is a third client's, not ours of before.
        after = here.vm.commands[len(before) :]
        assert fault is Fault.HELD
        assert after.count("qmp_capabilities") == 1

    play(tmp_path, scene, booted())


# --- a VMM that is broken or hostile ------------------------------------------------------------

MISDEEDS = {
    Misdeed.HANG: Fault.HANGS,
    Misdeed.EVENT_FLOOD: Fault.HANGS,
    Misdeed.GARBAGE: Fault.NONSENSE,
    Misdeed.ENDLESS_LINE: Fault.NONSENSE,
    Misdeed.DEEP: Fault.NONSENSE,
    Misdeed.NOT_ASKED: Fault.NONSENSE,
    Misdeed.HALF_MESSAGE: Fault.GONE,
    Misdeed.CLOSE: Fault.GONE,
}


@fault("a QEMU monitor hangs")
@pytest.mark.parametrize(("misdeed", "fault"), MISDEEDS.items())
def test_monitor_that_misbehaves_fails_the_call_and_is_disconnected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, misdeed: Misdeed, fault: Fault
) -> None:
    monkeypatch.setattr(qmp_wire, "CALL_WITHIN_S", SOON_S)

    async def scene(here: Scene) -> None:
        await here.control.open(here.notices.append)
        here.monitor.misdeed = misdeed
        failed = await here.fault_of(here.control.sample())
        why = await here.control.gone()
        assert why is not None
        assert why.fault is fault
        afterwards = await here.fault_of(here.control.set_balloon(0))
        another = QmpControl(str(here.monitor.path))
        await another.open(here.notices.append)
        another.close()
        assert (failed, afterwards) == (fault, fault)

    play(tmp_path, scene, booted())


LIES: list[tuple[str, Any]] = [
    ("query-balloon", {"actual": 1 << 63}),
    ("query-balloon", {"actual": -1}),
    ("query-balloon", {"actual": GIB + 4096}),
    ("query-balloon", {"actual": float("nan")}),
    ("query-balloon", {"actual": "1073741824"}),
    ("query-balloon", [[]]),
    ("query-status", {"running": "yes"}),
    ("query-status", 7),
    ("query-blockstats", {}),
    ("query-blockstats", [{"qdev": "a", "stats": {"rd_bytes": -5}}]),
    ("query-migrate", []),
    ("qom-get", {"stats": {"stat-free-memory": "much"}, "last-update": 7}),
    ("qom-get", {"stats": {"stat-free-memory": float("nan")}, "last-update": 7}),
    ("qom-get", {"stats": [], "last-update": 7}),
    ("qom-get", {"stats": {}, "last-update": -7}),
]


@fault("a QEMU monitor lies")
@pytest.mark.parametrize(("command", "answer"), LIES)
def test_answer_that_cannot_be_fails_the_call(tmp_path: Path, command: str, answer: Any) -> None:
    async def scene(here: Scene) -> Fault:
        await here.control.open(here.notices.append)
        here.vm.answers[command] = answer
        return await here.fault_of(here.control.sample())

    assert play(tmp_path, scene, booted()) is Fault.NONSENSE


@fault("a QEMU monitor lies")
@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("query-memory-size-summary", {"base-memory": 0}),
        ("query-memory-size-summary", {"base-memory": 1 << 60}),
        ("query-memory-devices", [{"type": "dimm", "data": {"size": -1}}]),
        ("query-cpus-fast", []),
        ("qom-list", {"name": "type"}),
        ("query-memdev", 1),
    ],
)
def test_vm_that_cannot_be_is_not_driven(tmp_path: Path, command: str, answer: Any) -> None:
    async def scene(here: Scene) -> Fault:
        here.vm.answers[command] = answer
        return await here.fault_of(here.control.open(here.notices.append))

    assert play(tmp_path, scene, booted()) is Fault.NONSENSE


@fault("a driven VM ends, and another process")
def test_another_process_at_the_path_is_met_anew(tmp_path: Path) -> None:
    async def scene(here: Scene) -> None:
        await here.control.open(here.notices.append)
        here.monitor.disconnect()
        await here.control.gone()
        other = ScriptedVm(ram_bytes=2 * GIB, actual=2 * GIB)
        async with ScriptedMonitor(here.monitor.path, other):
            found = await QmpControl(str(here.monitor.path)).open(here.notices.append)
        assert (found.vm_mem_bytes, found.state) == (2 * GIB, GuestState.NO_DRIVER)

    play(tmp_path, scene, booted())


@fault("a QEMU monitor hangs")
def test_end_of_the_vmm_is_told_to_whoever_waits_for_it(tmp_path: Path) -> None:
    async def scene(here: Scene) -> Fault:
        await here.control.open(here.notices.append)
        gone = asyncio.create_task(here.control.gone())
        here.monitor.disconnect()
        await gone
        return await here.fault_of(here.control.sample())

    assert play(tmp_path, scene, booted()) is Fault.GONE


def test_closed_control_says_nothing_more(tmp_path: Path) -> None:
    async def scene(here: Scene) -> None:
        await here.control.open(here.notices.append)
        here.monitor.reset()
        here.control.close()
        await here.control.gone()
        assert here.notices == []

    play(tmp_path, scene, booted())
