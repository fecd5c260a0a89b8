"""The fake guest in every shape against a real balloond: what each shape shows of both."""

import os
from functools import partial
from pathlib import Path

import pytest

from balloon_daemon.fake_guest.machine import FakeGuest, GuestSettings, run
from balloon_daemon.fake_guest.pages import Population
from balloon_daemon.fake_guest.settings import DriverSettings
from balloon_daemon.fake_guest.styles import CROSVM, QEMU, Style
from balloon_daemon.units import MIB, PAGE_SIZE
from balloon_daemon.virtio.balloon import OFFERED_FEATURES, BalloonFeature, BalloonQueue
from tests.harness.daemon import Daemon
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.makers import VM_MEM_MIB, MakeGuest, StartDaemon
from tests.harness.whole_vm import attach

MEM = VM_MEM_MIB * MIB
MAXIMUM_PAGES = MEM // 2 // PAGE_SIZE
TRACES = sorted((Path(__file__).parents[1] / "data" / "traces").glob("*.npz"))

# Kept pages beside removed ones: what is removed too much is missed at once.
MIXED = Population(
    order="fragmented", touched_bytes=96 * MIB, share=0.5, pinned_bytes=32 * MIB, run_pages=4
)


@pytest.fixture
def fast_daemon(start_daemon: StartDaemon) -> Daemon:
    """A daemon whose policy needs 0.6 s from the maximum back to zero."""
    return start_daemon("--speed", "1000")


def reached(guest: FakeGuest, num_pages: int) -> bool:
    return guest.driver.actual >= num_pages


def up_and_down(guest: FakeGuest, low_mem: LowMemDir) -> None:
    """Inflates to the maximum, checks, deflates to zero, checks."""
    before = guest.ram.blocks_bytes()
    low_mem.set_low()
    run([guest], lambda: guest.driver.actual == MAXIMUM_PAGES, 30)
    full = guest.ram.check()
    assert guest.ram.blocks_bytes() < before
    assert (full.pages_corrupt, full.balloon_resident) == (0, 0)
    low_mem.set_plenty()
    run([guest], lambda: guest.driver.actual == 0 and guest.driver.idle, 30)
    empty = guest.ram.check()
    assert empty.pages_corrupt == 0
    assert empty.pages_checked >= MIXED.pinned_bytes // PAGE_SIZE - 64
    assert guest.frontend is not None
    assert guest.frontend.requests.counters.early_config_changes == 0


@pytest.mark.parametrize("size", [1, 2, 4, 16, 64, 256, 1024, 4096, 32768])
def test_every_ring_size_inflates_and_deflates(
    size: int, fast_daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    driver = DriverSettings(queue_size=size)
    guest = make_guest(GuestSettings(MEM, driver=driver, population=MIXED))

    up_and_down(attach(guest, fast_daemon), low_mem)


@pytest.mark.parametrize("style", [QEMU, CROSVM], ids=lambda style: style.name)
def test_two_regions_with_a_hole_between_and_rings_above_it(
    style: Style, fast_daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    guest = make_guest(GuestSettings(MEM, low_bytes=MEM // 4, style=style, population=MIXED))

    up_and_down(attach(guest, fast_daemon), low_mem)


def test_memory_table_as_qemu_has_it_three_regions_with_a_hole_below_1_mib(
    fast_daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    guest = make_guest(GuestSettings(MEM, low_bytes=MEM // 2, vga_hole=True, population=MIXED))

    up_and_down(attach(guest, fast_daemon), low_mem)

    assert len(guest.ram.regions) == 3


@pytest.mark.parametrize("order", ["descending", "fragmented", "random"])
def test_every_order_of_pages_leaves_the_kept_ones_alone(
    order: str, fast_daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    population = Population(order, touched_bytes=128 * MIB, share=0.75, pinned_bytes=32 * MIB)
    guest = make_guest(GuestSettings(MEM, population=population))

    up_and_down(attach(guest, fast_daemon), low_mem)


@pytest.mark.parametrize("trace", TRACES, ids=lambda path: path.stem)
def test_recorded_trace_is_taken_whole(
    trace: Path, fast_daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    population = Population(str(trace), touched_bytes=64 * MIB, pinned_bytes=32 * MIB)
    guest = make_guest(GuestSettings(4 * MEM, population=population))
    attach(guest, fast_daemon)
    before = guest.ram.blocks_bytes()

    low_mem.set_low()
    # --vm-mem is 512 MiB less than what the memory table says: whose word counts is not ours
    # to test here, only that the first pages of the trace are taken.
    run([guest], lambda: guest.driver.actual >= MAXIMUM_PAGES, 30)

    check = guest.ram.check()
    assert before - guest.ram.blocks_bytes() == 64 * MIB
    assert (check.pages_corrupt, check.balloon_resident) == (0, 0)


@pytest.mark.parametrize(
    "features",
    [
        BalloonFeature(0),
        BalloonFeature.REPORTING,
        BalloonFeature.STATS_VQ,
        BalloonFeature.STATS_VQ | BalloonFeature.REPORTING,
        BalloonFeature.MUST_TELL_HOST | BalloonFeature.DEFLATE_ON_OOM,
    ],
    ids=["none", "reporting", "stats", "both", "no-queues"],
)
def test_every_choice_of_features_inflates_and_deflates(
    features: BalloonFeature, fast_daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    driver = DriverSettings(features=features | BalloonFeature.VERSION_1)
    guest = make_guest(GuestSettings(MEM, driver=driver, population=MIXED))

    up_and_down(attach(guest, fast_daemon), low_mem)


@pytest.mark.parametrize(
    "driver",
    [
        DriverSettings(in_flight=8),
        DriverSettings(in_flight=64, queue_size=64),
        DriverSettings(parts=4),
        DriverSettings(interrupts=False),
        DriverSettings(refill=True),
    ],
    ids=["8-in-flight", "full-ring-in-flight", "4-parts", "no-interrupts", "refill"],
)
def test_unusual_drivers_are_served(
    driver: DriverSettings, fast_daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    guest = make_guest(GuestSettings(MEM, driver=driver, population=MIXED))

    up_and_down(attach(guest, fast_daemon), low_mem)


def test_buffer_cut_inside_a_pfn_loses_nothing(
    daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    # 1024 bytes in three parts: no part ends between two PFNs, yet the chain is whole
    # (virtio 1.3, 2.7.4: a device must not rely on how a buffer is framed).
    driver = DriverSettings(parts=3)
    guest = attach(make_guest(GuestSettings(MEM, driver=driver, population=MIXED)), daemon)

    low_mem.set_low()
    run([guest], lambda: guest.driver.actual == MAXIMUM_PAGES)

    assert guest.ram.check().pages_corrupt == 0


@pytest.mark.parametrize("block_pages", [1, 64, 512, 1024])
def test_reported_blocks_are_freed_and_the_rest_is_kept(
    block_pages: int, daemon: Daemon, make_guest: MakeGuest
) -> None:
    population = Population(touched_bytes=64 * MIB, pinned_bytes=4 * MIB, pinned_run_pages=256)
    guest = attach(make_guest(GuestSettings(MEM, population=population)), daemon)
    before = guest.ram.blocks_bytes()

    guest.driver.reporting.start(block_pages)
    run([guest], lambda: guest.driver.idle)

    freed = before - guest.ram.blocks_bytes()
    assert 48 * MIB <= freed <= guest.driver.counters.reported_bytes
    assert guest.ram.check().pages_corrupt == 0


def test_reporting_while_inflating_loses_nothing(
    daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    guest = attach(make_guest(GuestSettings(MEM, population=MIXED)), daemon)
    low_mem.set_low()
    run([guest], lambda: guest.driver.actual > 0)

    guest.driver.reporting.start(16)
    run([guest], lambda: guest.driver.actual == MAXIMUM_PAGES and guest.driver.idle)

    assert guest.ram.check().pages_corrupt == 0


def test_target_beyond_the_guests_free_memory_leaves_actual_below(
    fast_daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    population = Population(pinned_bytes=320 * MIB)
    guest = attach(make_guest(GuestSettings(MEM, population=population)), fast_daemon)
    free = len(guest.driver.pages.free)

    low_mem.set_low()
    run([guest], lambda: guest.driver.counters.out_of_puff >= 3)
    stuck_at = guest.driver.actual
    low_mem.set_plenty()
    run([guest], lambda: guest.driver.actual == 0)

    assert stuck_at == free < MAXIMUM_PAGES
    assert guest.ram.check().pages_corrupt == 0


def test_reboot_in_mid_inflate_begins_anew_and_keeps_memory(
    daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    guest = attach(make_guest(GuestSettings(MEM, population=MIXED)), daemon)
    low_mem.set_low()
    run([guest], lambda: guest.driver.actual > 0)

    guest.reboot()
    after_reboot = guest.driver.actual
    run([guest], lambda: guest.driver.actual == MAXIMUM_PAGES)

    assert after_reboot == 0
    assert guest.ram.check().pages_corrupt == 0


def test_unbound_and_bound_ten_times_under_pressure_loses_nothing(
    daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    guest = attach(make_guest(GuestSettings(MEM, population=MIXED)), daemon)
    low_mem.set_low()

    for _ in range(10):
        run([guest], lambda: guest.driver.actual > 0)
        guest.unbind()
        guest.bind()
    run([guest], lambda: guest.driver.actual == MAXIMUM_PAGES)

    assert guest.ram.check().pages_corrupt == 0
    assert guest.frontend is not None
    assert guest.frontend.requests.counters.early_config_changes == 0


def test_paused_ten_times_in_mid_inflate_goes_on_from_its_bases(
    daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    guest = attach(make_guest(GuestSettings(MEM, population=MIXED)), daemon)
    low_mem.set_low()

    for part in range(1, 11):
        enough = MAXIMUM_PAGES * part // 12
        run([guest], partial(reached, guest, enough))
        guest.pause()
        guest.resume()
    run([guest], lambda: guest.driver.actual == MAXIMUM_PAGES)

    assert guest.ram.check().pages_corrupt == 0


def test_device_takes_statistics_and_keeps_the_buffer(
    daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    guest = attach(make_guest(GuestSettings(MEM, driver=DriverSettings(stat_tags=16))), daemon)
    low_mem.set_low()
    run([guest], lambda: guest.driver.actual == MAXIMUM_PAGES)

    # Whether it asks for more is the daemon's choice; that it holds one buffer is the rule.
    statsq = guest.driver.rings.queues[BalloonQueue.STATSQ]
    assert guest.driver.counters.stats_buffers >= 1
    assert statsq.outstanding == 1


def test_offered_features_are_all_that_a_driver_may_take(
    daemon: Daemon, make_guest: MakeGuest
) -> None:
    driver = DriverSettings(poison_val=0)
    guest = attach(make_guest(GuestSettings(MEM, driver=driver)), daemon)

    assert guest.acknowledged == OFFERED_FEATURES


def test_closed_guest_frees_its_memory_and_descriptors_at_once(
    daemon: Daemon, low_mem: LowMemDir
) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    guest = attach(FakeGuest(GuestSettings(MEM, population=MIXED)), daemon)
    low_mem.set_low()
    run([guest], lambda: guest.driver.actual == MAXIMUM_PAGES)
    inode = os.fstat(guest.ram.fd).st_ino

    guest.close()

    assert f" {inode} " not in Path("/proc/self/maps").read_text()
    assert len(os.listdir("/proc/self/fd")) == descriptors
