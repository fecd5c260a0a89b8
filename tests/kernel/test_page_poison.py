"""A whole balloond with guests that fill their free pages, and may look there for it again."""

import os
import signal
from dataclasses import replace

import pytest

from balloon_daemon.fake_guest.machine import FakeGuest, GuestSettings, run
from balloon_daemon.fake_guest.pages import Population
from balloon_daemon.fake_guest.settings import DriverSettings
from balloon_daemon.fake_guest.styles import CROSVM, QEMU, Style
from balloon_daemon.units import MIB
from balloon_daemon.virtio.balloon import BalloonFeature
from tests.harness.daemon import Daemon
from tests.harness.faults import fault
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.makers import MAXIMUM, VM_MEM_MIB, MakeGuest, StartDaemon
from tests.harness.whole_vm import attach, facts, said, wait_for_device

PATTERN = 0xAAAAAAAA
TOUCHED = 64 * MIB
EACH_VMM = pytest.mark.parametrize("style", [QEMU, CROSVM], ids=lambda style: style.name)


def filling_with(poison_val: int | None, style: Style = QEMU) -> GuestSettings:
    """A guest whose free pages hold this, 64 MiB of which the host holds at first."""
    return GuestSettings(
        VM_MEM_MIB * MIB,
        style=style,
        driver=DriverSettings(poison_val=poison_val),
        population=Population(touched_bytes=TOUCHED),
    )


def reported(guest: FakeGuest) -> int:
    """Has the guest report all of its free blocks. Returns the bytes that the host got."""
    held = guest.ram.blocks_bytes()
    assert guest.driver.reporting.start() > 0
    run([guest], lambda: guest.driver.idle)
    return held - guest.ram.blocks_bytes()


@EACH_VMM
def test_guest_that_clears_free_pages_gives_them_back_by_reports(
    style: Style, daemon: Daemon, make_guest: MakeGuest
) -> None:
    guest = attach(make_guest(filling_with(0, style)), daemon)

    freed = reported(guest)

    assert guest.acknowledged & BalloonFeature.PAGE_POISON
    assert freed > 0.9 * TOUCHED
    # Among the pages checked are those that were reported: zeros, or holes.
    assert guest.ram.check().pages_corrupt == 0
    assert said(daemon, "reports-not-freed") == []


@EACH_VMM
def test_guest_that_clears_free_pages_does_so_after_a_restart_with_a_full_balloon(
    style: Style, daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    guest = attach(make_guest(filling_with(0, style)), daemon)
    low_mem.set_low()
    run([guest], lambda: guest.driver.actual * 4096 == MAXIMUM)
    low_mem.set_plenty()

    guest.reboot()
    run([guest], lambda: guest.driver.num_pages == 0 and guest.driver.actual == 0)
    guest.driver.pages.touch_free(TOUCHED)

    assert reported(guest) > 0.9 * TOUCHED
    assert guest.ram.check().pages_corrupt == 0
    assert said(daemon, "reports-not-freed") == []


@fault("fills free pages with a pattern, and looks for it")
@EACH_VMM
def test_guest_that_looks_for_its_pattern_finds_it_and_is_named_once(
    style: Style, daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    guest = attach(make_guest(filling_with(PATTERN, style)), daemon)

    freed = [reported(guest)]
    os.kill(wait_for_device([guest], daemon, "vm1"), signal.SIGKILL)
    run([guest], lambda: facts(daemon, "device-died") != [])
    guest.pause()
    guest.resume()
    freed.append(reported(guest))
    check = guest.ram.check()
    low_mem.set_low()
    run([guest], lambda: guest.driver.actual * 4096 == MAXIMUM)

    assert freed == [0, 0]
    assert (check.pages_checked >= TOUCHED // 4096, check.pages_corrupt) == (True, 0)
    # The balloon takes what it always takes.
    assert guest.ram.check().pages_corrupt == 0
    (event,) = facts(daemon, "reports-not-freed")
    assert (event["poison_val"], event["vm"]) == (PATTERN, "vm1")


@fault("fills free pages with a pattern, and looks for it")
@pytest.mark.parametrize("poison_val", [0, PATTERN])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGUSR1])
def test_next_controller_knows_what_free_pages_hold(
    number: signal.Signals, poison_val: int, start_daemon: StartDaemon, make_guest: MakeGuest
) -> None:
    first = start_daemon("--keep-fds")
    guest = attach(make_guest(filling_with(poison_val)), first)
    wait_for_device([guest], first, "vm1")

    os.kill(first.pid, number)
    first.kill() if number is signal.SIGKILL else first.wait_end()
    second = start_daemon("--keep-fds")
    wait_for_device([guest], second, "vm1")
    freed = reported(guest)

    assert (freed > 0.9 * TOUCHED) == (poison_val == 0)
    assert guest.ram.check().pages_corrupt == 0
    assert len(facts(second, "reports-not-freed")) == (poison_val != 0)


def test_guest_is_offered_nothing_of_that_without_page_reporting(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    daemon = start_daemon("--no-page-reporting")
    guest = attach(make_guest(filling_with(0)), daemon)
    low_mem.set_low()
    run([guest], lambda: guest.driver.actual * 4096 == MAXIMUM)

    taken = guest.acknowledged & (BalloonFeature.PAGE_POISON | BalloonFeature.REPORTING)
    assert taken == 0


def test_pattern_that_changes_with_each_restart_does_not_fill_the_log(
    daemon: Daemon, make_guest: MakeGuest
) -> None:
    guest = attach(make_guest(filling_with(1)), daemon)
    for poison_val in range(2, 12):
        wait_for_device([guest], daemon, "vm1")
        guest.driver.settings = replace(guest.driver.settings, poison_val=poison_val)
        guest.reboot()
    wait_for_device([guest], daemon, "vm1")

    values = [event["poison_val"] for event in facts(daemon, "reports-not-freed")]
    assert values == [1, 2, 3, 4]
