"""QEMU's own balloon by its monitor: real guests, driven by the ``Control`` alone."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from balloon_daemon.events.driven import Fault
from balloon_daemon.guests.driven import qmp_wire
from balloon_daemon.guests.driven.control import ControlError, Found, Notice, Sample
from balloon_daemon.guests.driven.qmp import QmpControl
from balloon_daemon.guests.seam import Ability, GuestState
from tests.harness.faults import fault
from tests.harness.waiting import DeadlineError, wait_until
from tests.vm.guest import Guest
from tests.vm.images import Images
from tests.vm.qemu import MIB, Qemu, QemuConfig
from tests.vm.qmp import Qmp
from tests.vm.running import SESSION_LOGS

pytestmark = pytest.mark.vm

VM_MIB = 512
HALF = VM_MIB // 2 * MIB
OOM = {"deflate-on-oom": True}
DEADLINE_S = 120.0
"""Most waits take a second alone, a boot takes 5 to 12."""

MODERN = QemuConfig(
    "forky",
    VM_MIB,
    options=(
        *("-m", "slots=4,maxmem=2G", "-global", "ICH9-LPC.disable_s3=0"),
        # A port of its own, as devices cannot be unplugged from the root bus.
        *("-device", "pcie-root-port,id=plug,chassis=1,slot=1"),
        *("-device", "virtio-balloon-pci,id=balloon,bus=plug,deflate-on-oom=on"),
    ),
)
LEGACY = QemuConfig(
    "bookworm", VM_MIB, options=("-device", "virtio-balloon-pci,disable-modern=on")
)


class Driven:
    """A VM, and the control of its balloon."""

    def __init__(self, qemu: Qemu) -> None:
        self.qemu = qemu
        self.monitor = qemu.monitor
        self.notices: list[Notice] = []
        self.control = QmpControl(str(qemu.monitor_path))

    async def until(self, is_so: Callable[[Sample], bool], what: str) -> Sample:
        """Samples until a condition holds; fails the test if it does not in time."""
        end = time.monotonic() + DEADLINE_S
        while True:
            sample = await self.control.sample()
            if is_so(sample):
                return sample
            if time.monotonic() > end:
                raise DeadlineError(f"not in {DEADLINE_S:g} s: {what}; seen last: {sample}")
            await asyncio.sleep(0.05)

    async def set_balloon(self, balloon_bytes: int) -> Sample:
        """Sets the balloon's size, and waits until it has that."""
        await self.control.set_balloon(balloon_bytes)
        return await self.until(
            lambda sample: sample.balloon_bytes == balloon_bytes,
            f"a balloon of {balloon_bytes // MIB} MiB",
        )


def drive(guest: Guest, story: Callable[[Driven, Found], Awaitable[None]]) -> None:
    """Plays a story with the guest's monitor connected; the balloon is empty before it."""

    async def run() -> None:
        driven = Driven(guest.qemu)
        try:
            found = await driven.control.open(driven.notices.append)
            await driven.set_balloon(0)
            driven.notices.clear()
            await story(driven, found)
        finally:
            driven.control.close()
            await driven.control.gone()

    asyncio.run(run())


@pytest.fixture(scope="module")
def modern(images: Images) -> Iterator[Guest]:
    """A guest with plugs for DIMMs and for its balloon."""
    guest = Guest(images, MODERN, SESSION_LOGS / "qmp-modern")
    yield guest
    guest.stop()


@pytest.fixture(scope="module")
def legacy(images: Images) -> Iterator[Guest]:
    """A guest of legacy virtio, that does not deflate on OOM."""
    guest = Guest(images, LEGACY, SESSION_LOGS / "qmp-legacy")
    yield guest
    guest.stop()


def test_guest_is_squeezed_and_gets_its_memory_back(modern: Guest) -> None:
    async def story(driven: Driven, found: Found) -> None:
        modern.run("dd if=/dev/zero of=/tmp/file bs=1M count=300; rm /tmp/file")
        before = driven.qemu.memory_blocks_bytes()

        await driven.set_balloon(HALF)
        squeezed, in_guest = driven.qemu.memory_blocks_bytes(), modern.balloon_bytes()
        await driven.set_balloon(0)

        assert found.vm_mem_bytes == VM_MIB * MIB
        assert found.can == {Ability.STATS, Ability.DEFLATE_ON_OOM, Ability.DISK_READS}
        assert found.pid == driven.qemu.pid
        assert in_guest == HALF
        assert squeezed <= HALF < before
        assert modern.balloon_bytes() == 0

    drive(modern, story)


# Before the guest was suspended: afterwards its kernel hears of no unplugging any more.
@fault("a QEMU's balloon is unplugged")
def test_balloon_that_is_unplugged_and_plugged_again_is_driven_again(modern: Guest) -> None:
    async def story(driven: Driven, found: Found) -> None:
        await driven.control.watch(1)
        driven.monitor.execute("device_del", id="balloon")
        with pytest.raises(ControlError) as caught:
            await driven.until(lambda s: False, "the guest lets go of its balloon")
        driven.monitor.execute(
            "device_add", driver="virtio-balloon-pci", id="new", bus="plug", **OOM
        )
        await driven.until(lambda s: s.stats is not None, "statistics of the new balloon")
        await driven.set_balloon(HALF)
        assert caught.value.fault is Fault.NO_BALLOON

    drive(modern, story)


def test_guest_in_need_takes_memory_back_until_the_same_target_is_sent_again(
    modern: Guest,
) -> None:
    async def story(driven: Driven, found: Found) -> None:
        await driven.set_balloon(HALF)
        modern.run(f"dd if=/dev/zero of=/tmp/file bs=1M count={VM_MIB // 2}")
        in_need = await driven.until(lambda s: s.balloon_bytes != HALF, "deflates on OOM")
        modern.run("rm /tmp/file")
        await driven.set_balloon(HALF)
        assert in_need.balloon_bytes is not None
        assert in_need.balloon_bytes < HALF
        assert "Out of memory" not in modern.kernel_log()

    drive(modern, story)


def test_memory_file_is_the_one_whose_blocks_are_freed(modern: Guest) -> None:
    async def story(driven: Driven, found: Found) -> None:
        with open(found.memory_file, "rb") as memory:
            assert memory.seek(0, 2) == VM_MIB * MIB

    drive(modern, story)


@fault("one VM is named twice")
def test_another_monitor_of_the_same_vm_says_the_same_uuid(modern: Guest) -> None:
    async def story(driven: Driven, found: Found) -> None:
        assert driven.monitor.execute("query-uuid") == {"UUID": found.vm_uuid}
        assert found.vm_uuid

    drive(modern, story)


def test_statistics_come_each_second_once_watched(modern: Guest) -> None:
    async def story(driven: Driven, found: Found) -> None:
        await driven.control.watch(1)
        first = (await driven.until(lambda s: s.stats is not None, "statistics")).stats
        modern.run("dd if=/dev/vda of=/dev/null bs=1M count=64 iflag=direct")
        second = (await driven.until(lambda s: s.stats is not None, "more statistics")).stats
        await driven.control.watch(None)
        assert first is not None
        assert second is not None
        assert second.at_s > first.at_s
        assert second.oom_kills == 0
        assert 0 < (second.available_bytes or 0) < VM_MIB * MIB
        assert (second.disk_read_bytes or 0) - (first.disk_read_bytes or 0) >= 64 * MIB

    drive(modern, story)


def test_paused_guest_follows_its_target_when_it_goes_on(modern: Guest) -> None:
    async def story(driven: Driven, found: Found) -> None:
        driven.monitor.execute("stop")
        await driven.until(lambda s: s.state is GuestState.PAUSED, "paused")
        await driven.control.set_balloon(HALF)
        paused = await driven.control.sample()
        driven.monitor.execute("cont")
        await driven.until(lambda s: s.balloon_bytes == HALF, "squeezed")
        assert (paused.state, paused.balloon_bytes) == (GuestState.PAUSED, 0)
        assert Notice.RESET not in driven.notices

    drive(modern, story)


@fault("a QEMU's guest is paused")
def test_suspended_guest_has_all_its_memory_and_inflates_when_it_wakes(modern: Guest) -> None:
    async def story(driven: Driven, found: Found) -> None:
        await driven.set_balloon(HALF)
        suspend = modern.begin("echo mem > /sys/power/state")
        await driven.until(
            lambda s: (s.state, s.balloon_bytes) == (GuestState.PAUSED, 0),
            "suspended, with an empty balloon",
        )
        driven.monitor.execute("system_wakeup")
        await driven.until(lambda s: s.balloon_bytes == HALF, "squeezed again")
        modern.finish(suspend)
        assert Notice.RESET not in driven.notices

    drive(modern, story)


@fault("a QEMU's guest has DIMMs")
def test_dimm_counts_at_once_and_leaves_the_balloon_as_it_is(modern: Guest) -> None:
    async def story(driven: Driven, found: Found) -> None:
        await driven.set_balloon(HALF)
        driven.monitor.execute(
            "object-add", **{"qom-type": "memory-backend-ram", "id": "more", "size": 128 * MIB}
        )
        driven.monitor.execute("device_add", driver="pc-dimm", id="dimm", memdev="more")
        plugged = await driven.control.sample()
        # The guest takes what is sent for an order: the size must have the DIMM in it.
        settled = await driven.set_balloon(HALF)
        assert plugged.vm_mem_bytes == (VM_MIB + 128) * MIB
        assert plugged.balloon_bytes == settled.balloon_bytes == HALF
        assert driven.monitor.execute("query-balloon") == {"actual": HALF + 128 * MIB}

    drive(modern, story)


@fault("a snapshot or a migration to a file")
def test_saved_memory_is_told(modern: Guest, tmp_path_factory: pytest.TempPathFactory) -> None:
    async def story(driven: Driven, found: Found) -> None:
        await driven.set_balloon(HALF)
        squeezed = driven.qemu.memory_blocks_bytes()
        saved = tmp_path_factory.mktemp("saved") / "vm"
        driven.monitor.execute("migrate", uri=f"file:{saved}")
        await driven.until(lambda s: Notice.REFILLED in driven.notices, "the end of the migration")
        saved.unlink()
        sample = await driven.control.sample()
        filled = driven.qemu.memory_blocks_bytes()
        driven.monitor.execute("cont")
        await driven.until(lambda s: s.state is GuestState.RUNNING, "running again")
        assert sample.balloon_bytes == HALF
        assert squeezed <= HALF < filled

    drive(modern, story)


@fault("a snapshot or a migration to a file")
def test_snapshot_that_is_loaded_is_told_and_fills_memory(
    modern: Guest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    disk = tmp_path_factory.mktemp("disk") / "snapshots"

    async def story(driven: Driven, found: Found) -> None:
        add_disk(driven.monitor, disk)
        snapshot = {"tag": "then", "vmstate": "snapshots", "devices": ["snapshots"]}
        await driven.set_balloon(HALF)
        run_job(driven.monitor, "snapshot-save", snapshot)
        await driven.until(lambda s: s.state is GuestState.RUNNING, "running again")
        await driven.set_balloon(0)
        await driven.set_balloon(HALF)
        squeezed = driven.qemu.memory_blocks_bytes()
        driven.notices.clear()

        run_job(driven.monitor, "snapshot-load", snapshot)
        await driven.until(lambda s: Notice.REFILLED in driven.notices, "the load is told")

        assert squeezed <= HALF < driven.qemu.memory_blocks_bytes()

    drive(modern, story)


def add_disk(monitor: Qmp, path: Path) -> None:
    """Gives QEMU a disk of no device's, which can hold snapshots: the node ``snapshots``."""
    path.touch()
    monitor.execute("blockdev-add", **{"driver": "file", "filename": str(path), "node-name": "at"})
    run_job(
        monitor, "blockdev-create", {"options": {"driver": "qcow2", "file": "at", "size": MIB}}
    )
    monitor.execute("blockdev-add", **{"driver": "qcow2", "file": "at", "node-name": "snapshots"})


def run_job(monitor: Qmp, command: str, arguments: Mapping[str, object]) -> None:
    """Runs a job of QEMU's, and waits for its end."""

    def concluded() -> dict[str, Any] | None:
        (job,) = monitor.execute("query-jobs")
        return dict(job) if job["status"] == "concluded" else None

    monitor.execute(command, **{"job-id": "job", **arguments})
    job = wait_until(concluded, deadline_s=DEADLINE_S, what=command)
    assert job is not None
    assert "error" not in job, job
    monitor.execute("job-dismiss", id="job")


@fault("a snapshot or a migration to a file")
def test_migration_that_is_cancelled_between_two_samples_is_told_each_time(
    modern: Guest,
) -> None:
    async def story(driven: Driven, found: Found) -> None:
        for _ in range(2):
            await driven.control.sample()
            driven.notices.clear()
            cancel_migration(driven.monitor)
            await driven.until(lambda s: Notice.REFILLED in driven.notices, "it is told")

    drive(modern, story)


def cancel_migration(monitor: Qmp) -> None:
    """Begins a migration and cancels it: the VM goes on all the while."""

    def status_is(*wanted: str) -> bool:
        return monitor.execute("query-migrate")["status"] in wanted

    usual = monitor.execute("query-migrate-parameters")["max-bandwidth"]
    monitor.execute("migrate-set-parameters", **{"max-bandwidth": MIB})
    monitor.execute("migrate", uri="exec:cat > /dev/null")
    wait_until(lambda: status_is("active"), deadline_s=DEADLINE_S, what="it is under way")
    monitor.execute("migrate_cancel")
    wait_until(lambda: status_is("cancelled", "failed"), deadline_s=DEADLINE_S, what="its end")
    monitor.execute("migrate-set-parameters", **{"max-bandwidth": usual})


@fault("a QEMU monitor is held")
def test_monitor_that_somebody_else_holds_is_said_to_be_held(
    modern: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(driven: Driven, found: Found) -> None:
        monkeypatch.setattr(qmp_wire, "CALL_WITHIN_S", 1.0)
        second = QmpControl(str(driven.qemu.monitor_path))
        with pytest.raises(ControlError) as caught:
            await second.open(driven.notices.append)
        assert caught.value.fault is Fault.HELD

    drive(modern, story)


@fault("a QEMU keeps")
def test_size_is_unknown_from_a_reset_until_the_next_driver_writes_one(modern: Guest) -> None:
    async def story(driven: Driven, found: Found) -> None:
        size = found.vm_mem_bytes
        await driven.set_balloon(HALF)
        driven.monitor.execute("system_reset")
        booting = await driven.until(lambda s: Notice.RESET in driven.notices, "the reset")
        kept = driven.monitor.execute("query-balloon")
        seen = [booting]
        async with asyncio.timeout(DEADLINE_S):
            # QEMU has kept the target, and squeezes the new kernel while it boots.
            while seen[-1].balloon_bytes != HALF:
                # As often as can be: the driver listens for some ms before it writes a size.
                seen.append(await driven.control.sample())
        modern.wait_boot()
        states = [state for state, _ in groupby(sample.state for sample in seen)]
        sizes = [s.balloon_bytes for s in seen if s.balloon_bytes is not None]
        assert kept == {"actual": size - HALF}
        assert states == [GuestState.NO_DRIVER, GuestState.RUNNING]
        assert {s.balloon_bytes for s in seen if s.state is GuestState.NO_DRIVER} == {None}
        # A size of before the reset would be larger than the next one.
        assert sizes == sorted(sizes)
        assert driven.notices.count(Notice.RESET) == 1

    drive(modern, story)


@fault("a QEMU reports half-written")
def test_sizes_that_legacy_virtio_writes_byte_by_byte_are_never_reported_half(
    legacy: Guest,
) -> None:
    async def story(driven: Driven, found: Found) -> None:
        async def sizes_on_the_way(target: int) -> list[int]:
            await driven.control.set_balloon(target)
            seen: list[int] = []
            while not seen or seen[-1] != target:
                # As often as can be: a size is half written for some µs.
                size = (await driven.control.sample()).balloon_bytes
                assert size is not None
                seen.append(size)
            return seen

        async with asyncio.timeout(DEADLINE_S):
            up = await sizes_on_the_way(HALF)
            await driven.control.watch(1)
            for _ in range(3):
                # QEMU sends one BALLOON_CHANGE a second, and the first of some at once.
                await driven.until(lambda s: s.stats is not None, "a second is over")
            down = await sizes_on_the_way(0)
        # 0x10000 pages become 0xff00: after two of four bytes they are 0x1ff00.
        while driven.monitor.wait_event("BALLOON_CHANGE", DEADLINE_S)["actual"] != 1 * MIB:
            pass
        assert up == sorted(up)
        assert down == sorted(down, reverse=True)

    drive(legacy, story)


def test_guest_that_does_not_deflate_on_oom_is_left_half(legacy: Guest) -> None:
    async def story(driven: Driven, found: Found) -> None:
        await driven.control.set_balloon(VM_MIB * MIB)
        await driven.until(lambda s: s.balloon_bytes == HALF, "half of its memory")
        assert found.can == {Ability.STATS, Ability.DISK_READS}

    drive(legacy, story)


def test_kernel_that_does_not_count_oom_kills_leaves_them_unknown(legacy: Guest) -> None:
    async def story(driven: Driven, found: Found) -> None:
        await driven.control.watch(1)
        stats = (await driven.until(lambda s: s.stats is not None, "statistics")).stats
        assert stats is not None
        assert stats.available_bytes is not None
        assert (stats.oom_kills, stats.alloc_stalls, stats.direct_reclaims) == (None,) * 3

    drive(legacy, story)


# Behind all others of this guest, which does not run any more afterwards.
@fault("a QEMU's statistics stop")
def test_guest_that_a_migration_has_brought_is_known_with_its_balloon(
    images: Images, legacy: Guest, tmp_path: Path
) -> None:
    saved = tmp_path / "vm"

    async def save(driven: Driven, found: Found) -> None:
        await driven.set_balloon(HALF)
        driven.monitor.execute("migrate", uri=f"file:{saved}")
        await driven.until(lambda s: Notice.REFILLED in driven.notices, "the end of the migration")

    async def meet() -> Sample:
        arrived = Driven(qemu)
        try:
            await arrived.control.open(arrived.notices.append)
            return await arrived.until(lambda s: s.balloon_bytes is not None, "a known balloon")
        finally:
            arrived.control.close()

    drive(legacy, save)
    (SESSION_LOGS / "qmp-arrived").mkdir(parents=True)
    incoming = replace(LEGACY, options=(*LEGACY.options, "-incoming", f"file:{saved}"))
    qemu = Qemu(images, incoming, SESSION_LOGS / "qmp-arrived")
    try:
        sample = asyncio.run(meet())
    finally:
        qemu.stop()
    assert (sample.state, sample.balloon_bytes) == (GuestState.RUNNING, HALF)


def fault_of(images: Images, name: str, *options: str) -> Fault:
    """Why a VM with these options, whose guest never runs, cannot be driven."""
    config = QemuConfig("forky", 64, options=("-S", *options))
    (SESSION_LOGS / name).mkdir(parents=True)
    qemu = Qemu(images, config, SESSION_LOGS / name)
    try:
        with pytest.raises(ControlError) as caught:
            asyncio.run(QmpControl(str(qemu.monitor_path)).open(lambda notice: None))
    finally:
        qemu.stop()
    return caught.value.fault


def test_vm_without_a_balloon_is_refused(images: Images) -> None:
    assert fault_of(images, "qmp-none") is Fault.NO_BALLOON


@fault("a QEMU's VM has huge pages")
def test_vm_with_memory_in_huge_pages_is_refused(images: Images) -> None:
    huge = "memory-backend-memfd,id=huge,size=64M,hugetlb=on,reserve=off"
    fault = fault_of(images, "qmp-huge", "-device", "virtio-balloon-pci", "-object", huge)
    assert fault is Fault.HUGETLB
