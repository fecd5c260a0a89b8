"""How much a VM may be asked for: by its flag, its memory table and what its guest says it has."""

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from balloon_daemon.fake_guest.machine import FakeGuest, GuestSettings
from balloon_daemon.fake_guest.pages import Population
from balloon_daemon.fake_guest.settings import DriverSettings
from balloon_daemon.fake_guest.styles import CROSVM, QEMU, QEMU_WITHOUT_SLOTS, Style
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.units import GIB, MIB, PAGE_SIZE
from balloon_daemon.virtio.balloon import OFFERED_FEATURES, BalloonFeature, StatTag
from tests.fakes import memory_files
from tests.fakes.memory_files import region
from tests.harness.daemon import Daemon
from tests.harness.faults import fault
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.makers import MakeGuest, StartDaemon
from tests.harness.whole_vm import (
    LOST,
    balloon_bytes,
    decisions,
    errors,
    facts,
    run_until,
    said,
    share_beside,
    wait_for_device,
)

SMALL = GuestSettings(GIB)
MAXIMUM = 512 * MIB
"""Of a VM of 1 GiB."""

BESIDE_AT = 16 * GIB
LIMIT = 1 << 44
"""16 TiB, where page frame numbers of 32 bits end."""


def start_vm(guest: FakeGuest, daemon: Daemon) -> FakeGuest:
    guest.connect(str(daemon.config.socket))
    guest.bind()
    return guest


def level(daemon: Daemon) -> int:
    return int(daemon.decision().get("balloon_level", 0))


def squeeze(guest: FakeGuest, daemon: Daemon, low_mem: LowMemDir) -> int:
    """Keeps the host low until nothing more is asked for. Returns what is, in bytes."""
    low_mem.set_low()
    run_until([guest], lambda: "at-maximum" in [reason for reason, _ in decisions(daemon)])
    return daemon.target_bytes()


def says_total(guest: FakeGuest, total: Callable[[int], int]) -> None:
    """Has its driver report another total memory."""
    statistics = guest.driver.statistics.values

    def other() -> dict[StatTag, int]:
        values = statistics()
        return values | {StatTag.MEMTOT: total(values[StatTag.MEMTOT])}

    guest.driver.statistics.values = other  # type: ignore[method-assign]  # this driver's


def plug(guest: FakeGuest, size_bytes: int) -> OwnedFd:
    """Plugs a DIMM in while it runs; its guest uses it. Returns its file."""
    dimm = OwnedFd(memory_files.memfd(size_bytes))
    assert guest.frontend is not None
    more = (region(4 * GIB, size_bytes), dimm.fileno())
    guest.frontend.share_memory([*guest.ram.shared(), more])
    return dimm


def test_table_that_is_sent_again_does_not_undo_what_the_guests_total_has_taught(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    # A driver whose total stays though its features let expect that it falls (Windows'), beside a
    # shared-memory device; its VMM sends the whole table with new descriptors after a pause.
    driver = DriverSettings(features=OFFERED_FEATURES & ~BalloonFeature.DEFLATE_ON_OOM)
    guest = make_guest(replace(SMALL, style=QEMU_WITHOUT_SLOTS, driver=driver))
    says_total(guest, lambda _: GIB)
    beside = OwnedFd(memory_files.memfd(GIB))
    share_beside(guest, (region(BESIDE_AT, GIB), beside.fileno()))
    daemon = start_daemon(vm_mem_mib=None)
    start_vm(guest, daemon)
    low_mem.set_low()
    run_until([guest], lambda: balloon_bytes(guest) >= 256 * MIB)

    guest.pause()
    guest.resume()

    assert squeeze(guest, daemon, low_mem) == MAXIMUM
    beside.close()


# --- the flag ---------------------------------------------------------------------------------


@fault("`--vm-mem` is larger or smaller than the VM")
@pytest.mark.parametrize(
    ("vm_mem_mib", "most", "words"),
    [
        (4096, MAXIMUM, "going by the VMM's memory table"),
        (600, 300 * MIB, "going by --vm-mem"),
        (1024, MAXIMUM, ""),
        (None, MAXIMUM, ""),
    ],
)
def test_flag_other_than_the_memory_table_the_smaller_one_counts(
    vm_mem_mib: int | None,
    most: int,
    words: str,
    start_daemon: StartDaemon,
    low_mem: LowMemDir,
    make_guest: MakeGuest,
) -> None:
    daemon = start_daemon(vm_mem_mib=vm_mem_mib)
    guest = start_vm(make_guest(SMALL), daemon)

    assert squeeze(guest, daemon, low_mem) == most

    run_until([guest], lambda: balloon_bytes(guest) == most)
    (line,) = [*said(daemon, "sizes-differ"), ""][:1]
    assert line.endswith(words)
    assert guest.driver.counters.out_of_puff == 0


# --- what looks like RAM and is none ----------------------------------------------------------


@fault("shared-memory device or virtio-mem in the table")
@pytest.mark.parametrize("style", [QEMU, QEMU_WITHOUT_SLOTS, CROSVM], ids=lambda s: s.name)
def test_shared_memory_device_in_the_table_is_not_asked_for(
    style: Style, start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    daemon = start_daemon(vm_mem_mib=None)
    guest = make_guest(replace(SMALL, style=style))
    file = OwnedFd(memory_files.memfd(4 * GIB))
    share_beside(guest, (region(BESIDE_AT, 4 * GIB), file.fileno()))
    start_vm(guest, daemon)

    assert squeeze(guest, daemon, low_mem) == MAXIMUM

    assert max(target for _, target in decisions(daemon)) <= MAXIMUM
    assert GIB in [record.get("guest_bytes") for record in facts(daemon, "sizes-differ")]
    file.close()


def test_guest_without_deflate_on_oom_whose_total_falls_with_its_balloon_is_asked_for_all(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    # Linux then takes the balloon out of its total: read as it stands, the VM would shrink.
    daemon = start_daemon(vm_mem_mib=None)
    features = int(OFFERED_FEATURES & ~BalloonFeature.DEFLATE_ON_OOM)
    guest = make_guest(replace(SMALL, driver=DriverSettings(features=features)))
    file = OwnedFd(memory_files.memfd(4 * GIB))
    share_beside(guest, (region(BESIDE_AT, 4 * GIB), file.fileno()))
    start_vm(guest, daemon)

    assert squeeze(guest, daemon, low_mem) == MAXIMUM

    run_until([guest], lambda: balloon_bytes(guest) == MAXIMUM)
    # Statistics are asked for with each decision, also at the maximum.
    run_until(
        [guest], lambda: min(r.get("stat_memtot", GIB) for r in daemon.records()) < 768 * MIB
    )


@fault("says that it has no memory")
@pytest.mark.parametrize("total", [0, 2**64 - 1, 4 * MIB], ids=["none", "all-ones", "4-mib"])
def test_total_that_makes_no_sense_is_passed_over(
    total: int, start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    daemon = start_daemon(vm_mem_mib=None)
    guest = make_guest(SMALL)
    says_total(guest, lambda _: total)
    start_vm(guest, daemon)

    assert squeeze(guest, daemon, low_mem) == MAXIMUM
    run_until([guest], lambda: balloon_bytes(guest) == MAXIMUM)


@fault("says that it has no memory")
def test_guest_that_says_more_than_its_vmm_shares_is_not_asked_for_it(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    daemon = start_daemon(vm_mem_mib=None)
    guest = make_guest(SMALL)
    says_total(guest, lambda total: 64 * GIB)
    start_vm(guest, daemon)

    assert squeeze(guest, daemon, low_mem) == MAXIMUM


def test_legacy_driver_without_statistics_goes_by_the_table(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    daemon = start_daemon(vm_mem_mib=None)
    settings = replace(SMALL, num_vqs=2, driver=DriverSettings(features=0))
    guest = start_vm(make_guest(settings), daemon)

    assert squeeze(guest, daemon, low_mem) == MAXIMUM
    run_until([guest], lambda: balloon_bytes(guest) == MAXIMUM)


@fault("says that it has no memory")
def test_guest_whose_total_changes_with_each_report_does_not_fill_the_log(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    daemon = start_daemon(vm_mem_mib=None)
    guest = make_guest(GuestSettings(4 * GIB))
    reports = [0]

    def restless(_: int) -> int:
        reports[0] += 1
        return GIB + reports[0] % 7 * 512 * MIB

    says_total(guest, restless)
    began = time.monotonic()
    start_vm(guest, daemon)
    wait_for_device([guest], daemon, "vm1")
    low_mem.set_low()
    run_until([guest], lambda: reports[0] >= 60)
    seconds_begun = int(time.monotonic() - began) + 2

    lines = [
        r
        for r in daemon.records()
        if r["level"] != "debug"
        and (r["event"] in ("sizes-differ", "vm-resized") or r.get("reason") == "resized")
    ]
    # Each contradiction once, and of the changes two in each second of the clock that has begun,
    # with two lines each.
    assert len(lines) <= 7 + 4 * seconds_begun


# --- memory that comes and goes ---------------------------------------------------------------


@fault("memory plugged in or out while the guest runs")
@pytest.mark.parametrize("style", [QEMU, QEMU_WITHOUT_SLOTS], ids=lambda style: style.name)
def test_memory_plugged_in_raises_the_maximum_and_out_lowers_the_target_at_once(
    style: Style, start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    daemon = start_daemon(vm_mem_mib=None)
    guest = start_vm(make_guest(replace(SMALL, style=style)), daemon)
    assert squeeze(guest, daemon, low_mem) == MAXIMUM

    dimm = plug(guest, 3 * GIB)
    run_until([guest], lambda: level(daemon) == 16 and daemon.target_bytes() == 3 * GIB)

    low_mem.set_available(110)  # No longer low, and not enough to give back.
    assert guest.frontend is not None
    guest.frontend.share_memory(guest.ram.shared())
    run_until([guest], lambda: balloon_bytes(guest) == MAXIMUM)
    dimm.close()
    resized = [target for reason, target in decisions(daemon) if reason == "resized"]
    assert resized[-1] == MAXIMUM
    assert errors(daemon) == []


@fault("memory plugged in or out while the guest runs")
def test_memory_plugged_in_asks_for_no_more_while_memory_is_not_low(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    daemon = start_daemon(vm_mem_mib=None)
    guest = start_vm(make_guest(SMALL), daemon)
    assert squeeze(guest, daemon, low_mem) == MAXIMUM
    low_mem.set_available(110)

    dimm = plug(guest, 3 * GIB)
    run_until([guest], lambda: "resized" in [reason for reason, _ in decisions(daemon)])

    # 3 GiB in 16 steps are 192 MiB each: the highest level that asks for no more than before.
    resized = [target for reason, target in decisions(daemon) if reason == "resized"]
    assert resized[0] == 384 * MIB
    dimm.close()


@fault("shared-memory device or virtio-mem in the table")
def test_memory_that_virtio_mem_plugs_is_in_the_table_from_the_beginning_and_counts_when_used(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    daemon = start_daemon(vm_mem_mib=None)
    guest = make_guest(SMALL)
    file = OwnedFd(memory_files.memfd(15 * GIB))
    share_beside(guest, (region(BESIDE_AT, 15 * GIB), file.fileno()))
    start_vm(guest, daemon)
    assert squeeze(guest, daemon, low_mem) == MAXIMUM

    guest.driver.statistics.memory_plugged(3 * GIB)
    run_until([guest], lambda: daemon.target_bytes() == 3 * GIB)

    guest.driver.statistics.memory_plugged(-3 * GIB)
    run_until([guest], lambda: daemon.target_bytes() == MAXIMUM)
    file.close()


@fault("memory plugged in or out while the guest runs")
def test_memory_unplugged_below_what_a_balloon_needs_is_asked_back(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    daemon = start_daemon(vm_mem_mib=None)
    guest = make_guest(SMALL)
    start_vm(guest, daemon)
    assert squeeze(guest, daemon, low_mem) == MAXIMUM
    run_until([guest], lambda: balloon_bytes(guest) == MAXIMUM)

    # By its own word it has 400 MiB left: too little for any balloon.
    guest.driver.statistics.memory_plugged(-624 * MIB)
    run_until([guest], lambda: balloon_bytes(guest) == 0)

    assert decisions(daemon)[-1][1] == 0


def test_size_outlives_a_restart_and_still_follows_the_guest(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    first = start_daemon("--keep-fds", vm_mem_mib=None)
    guest = make_guest(SMALL)
    file = OwnedFd(memory_files.memfd(15 * GIB))
    share_beside(guest, (region(BESIDE_AT, 15 * GIB), file.fileno()))
    start_vm(guest, first)
    assert squeeze(guest, first, low_mem) == MAXIMUM

    first.kill()
    second = start_daemon("--keep-fds", vm_mem_mib=None)
    run_until([guest], lambda: "at-maximum" in [reason for reason, _ in decisions(second)])
    assert max(target for _, target in decisions(second)) == MAXIMUM

    guest.driver.statistics.memory_plugged(3 * GIB)
    run_until([guest], lambda: second.target_bytes() == 3 * GIB)
    file.close()


def test_memory_plugged_into_a_guest_without_statistics_counts_after_a_restart(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    # Nothing but the table tells its size, before and after.
    first = start_daemon("--keep-fds", vm_mem_mib=None)
    settings = replace(SMALL, num_vqs=2, driver=DriverSettings(features=0))
    guest = start_vm(make_guest(settings), first)
    assert squeeze(guest, first, low_mem) == MAXIMUM

    first.kill()
    second = start_daemon("--keep-fds", vm_mem_mib=None)
    run_until([guest], lambda: decisions(second) != [])
    dimm = plug(guest, 3 * GIB)

    run_until([guest], lambda: second.target_bytes() == 3 * GIB)
    dimm.close()


# --- pages that cannot be named ---------------------------------------------------------------


@fault("part of the memory at 16 TiB or above")
def test_region_that_ends_at_16_tib_is_like_any_other(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    daemon = start_daemon(vm_mem_mib=None)
    guest = make_guest(SMALL)
    file = OwnedFd(memory_files.memfd(64 * MIB))
    share_beside(guest, (region(LIMIT - 64 * MIB, 64 * MIB), file.fileno()))
    start_vm(guest, daemon)

    assert squeeze(guest, daemon, low_mem) >= MAXIMUM
    assert facts(daemon, "memory-out-of-reach") == []
    file.close()


@fault("part of the memory at 16 TiB or above")
@pytest.mark.parametrize(
    ("start", "size"),
    [(LIMIT - 64 * MIB, 64 * MIB + PAGE_SIZE), (LIMIT, GIB), (LIMIT + GIB, 2 * MIB)],
)
def test_memory_at_16_tib_or_above_leaves_no_balloon_and_loses_no_page(
    start: int, size: int, start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    daemon = start_daemon("--vm-mem", "1G")
    guest = make_guest(replace(SMALL, population=Population(pinned_bytes=64 * MIB)))
    neighbour = make_guest(SMALL)
    file = OwnedFd(memory_files.memfd(size))
    share_beside(guest, (region(start, size), file.fileno()))
    start_vm(guest, daemon)
    start_vm(neighbour, daemon)
    wait_for_device([guest, neighbour], daemon, "vm1")

    # Linux's driver sends the low 32 bits of such a page's number: another page's.
    guest.driver.num_pages = 512
    in_use = np.flatnonzero(guest.ram.state == 1)[:256]
    guest.driver.rings.write(guest.driver.rings.scratch, guest.ram.numbers.pfns(in_use).tobytes())
    inflateq = next(iter(guest.driver.rings.queues.values()))
    inflateq.add([(guest.driver.rings.scratch, 1024)])
    assert guest.frontend is not None
    guest.frontend.kick(0)
    low_mem.set_low()
    run_until([guest, neighbour], lambda: balloon_bytes(neighbour) == MAXIMUM)
    run_until([guest, neighbour], lambda: said(daemon, *LOST) != [])

    assert [record["vm"] for record in facts(daemon, "memory-out-of-reach")] == ["vm1"]
    assert {target for _, target in decisions(daemon, "vm1")} <= {0}
    assert guest.ram.check().pages_corrupt == 0
    assert facts(daemon, *LOST)[0]["out_of_reach"]
    file.close()


@fault("part of the memory at 16 TiB or above")
def test_page_reports_of_a_guest_with_memory_at_16_tib_still_free_memory(
    start_daemon: StartDaemon, make_guest: MakeGuest
) -> None:
    # They carry addresses of 64 bits.
    daemon = start_daemon(vm_mem_mib=None)
    guest = make_guest(replace(SMALL, population=Population(touched_bytes=64 * MIB)))
    file = OwnedFd(memory_files.memfd(2 * MIB))
    share_beside(guest, (region(LIMIT, 2 * MIB), file.fileno()))
    start_vm(guest, daemon)
    wait_for_device([guest], daemon, "vm1")
    before = guest.ram.blocks_bytes()

    assert guest.driver.reporting.start() > 0
    run_until([guest], lambda: guest.driver.idle)

    assert guest.ram.blocks_bytes() <= before - 32 * MIB
    file.close()


def test_memory_at_16_tib_that_is_unplugged_leaves_a_balloon_again(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    daemon = start_daemon(vm_mem_mib=None)
    guest = make_guest(SMALL)
    own = guest.ram.shared
    file = OwnedFd(memory_files.memfd(2 * MIB))
    share_beside(guest, (region(LIMIT, 2 * MIB), file.fileno()))
    start_vm(guest, daemon)
    low_mem.set_low()
    run_until([guest], lambda: "no-balloon" in [reason for reason, _ in decisions(daemon)])

    guest.ram.shared = own  # type: ignore[method-assign]  # as before
    assert guest.frontend is not None
    guest.frontend.share_memory(own())
    run_until([guest], lambda: balloon_bytes(guest) == MAXIMUM)

    assert guest.ram.check().pages_corrupt == 0
    file.close()
