"""A VMM that connects anew, its driver in mid-life: what is in its balloon nobody knows."""

import time
from dataclasses import replace

import pytest

from balloon_daemon.fake_guest.frontend import FakeFrontend
from balloon_daemon.fake_guest.machine import FakeGuest, GuestSettings
from balloon_daemon.fake_guest.pages import Population
from balloon_daemon.fake_guest.ring import DriverQueue
from balloon_daemon.fake_guest.styles import CROSVM, QEMU, QEMU_WITHOUT_SLOTS, Style
from balloon_daemon.fake_guest.wire import Wire
from balloon_daemon.units import MIB
from tests.harness.daemon import Daemon
from tests.harness.faults import fault
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.makers import MAXIMUM, STEP, VM_MEM_MIB, MakeGuest, StartDaemon
from tests.harness.whole_vm import (
    balloon_bytes,
    decisions,
    errors,
    run_until,
    said,
    wait_for_device,
)

SETTINGS = GuestSettings(
    VM_MEM_MIB * MIB, population=Population(touched_bytes=64 * MIB, pinned_bytes=16 * MIB)
)
HALF = MAXIMUM // 2
FINDING_OUT = "its driver ran before balloond did: finding out its balloon's size"


def used_idx(queue: DriverQueue) -> int:
    """Where the device stands, as the guest's memory says (virtio 1.3, 2.7.8)."""
    return int(queue._used16[1])


def connect_again(guest: FakeGuest, daemon: Daemon) -> FakeFrontend:
    """Connects as Cloud Hypervisor does when a back-end comes back: the driver goes on."""
    guest.hang_up()
    wire = Wire.connect(str(daemon.config.socket), timeout_s=60)
    frontend = FakeFrontend(wire, guest.settings.style, num_vqs=guest.settings.num_vqs)
    guest.frontend = guest.driver.rings.transport = frontend
    guest.disconnected = ""
    frontend.negotiate()
    queues = {queue.ring.index: queue for queue in guest.driver.rings.queues.values()}
    guest._rings = [replace(r, base=used_idx(queues[r.index])) for r in guest._rings]
    frontend.start(guest.acknowledged, guest.ram.shared(), guest._rings)
    return frontend


def with_balloon(
    guest: FakeGuest, start_daemon: StartDaemon, low_mem: LowMemDir, balloon: int
) -> None:
    """A guest with so much in its balloon, of which nobody knows: its balloond was killed."""
    first = start_daemon("--speed", "50", name="first")
    guest.connect(str(first.config.socket))
    guest.bind()
    low_mem.set_low()
    run_until([guest], lambda: balloon_bytes(guest) >= balloon)
    low_mem.set_available(110)  # Not low, and too little to give back: it comes to rest.
    run_until([guest], lambda: balloon_bytes(guest) == decisions(first)[-1][1])
    run_until([guest], lambda: guest.driver.idle)
    first.kill()
    low_mem.set_plenty()


def found(daemon: Daemon) -> list[str]:
    return said(daemon, "balloon-found")


@fault("connects anew with its driver in mid-life")
@pytest.mark.parametrize("style", [QEMU, QEMU_WITHOUT_SLOTS, CROSVM], ids=lambda style: style.name)
def test_balloon_of_a_driver_in_mid_life_is_found_out_and_grows_on_while_memory_is_low(
    style: Style, start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    guest = make_guest(replace(SETTINGS, style=style))
    with_balloon(guest, start_daemon, low_mem, HALF)
    held = balloon_bytes(guest)
    low_mem.set_low()
    second = start_daemon("--speed", "5")

    connect_again(guest, second)
    # On a busy machine it may have reached its maximum under the first balloond.
    run_until([guest], lambda: found(second) != [])
    run_until([guest], lambda: balloon_bytes(guest) == MAXIMUM)

    assert len(said(second, "balloon-sought")) == 1
    assert len(found(second)) == 1
    reason, adopted = decisions(second)[0]
    assert reason == "adopted"
    # A buffer or two went back for the question, and at most a level with it.
    assert held - 2 * STEP < adopted <= held
    check = guest.ram.check()
    assert (check.pages_corrupt, check.balloon_resident) == (0, 0)
    assert errors(second) == []


@fault("connects anew with its driver in mid-life")
def test_balloon_that_nobody_needs_any_more_goes_back(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    guest = make_guest(SETTINGS)
    with_balloon(guest, start_daemon, low_mem, HALF)
    second = start_daemon("--speed", "100")

    connect_again(guest, second)
    run_until([guest], lambda: decisions(second) != [])
    assert balloon_bytes(guest) > HALF // 2
    run_until([guest], lambda: balloon_bytes(guest) == 0)

    targets = [target for _, target in decisions(second)]
    assert targets == sorted(targets, reverse=True)
    assert guest.ram.check().pages_corrupt == 0


def test_driver_in_mid_life_with_an_empty_balloon_is_found_empty(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    guest = make_guest(SETTINGS)
    with_balloon(guest, start_daemon, low_mem, STEP)
    pages = guest.driver.pages.balloon.take(len(guest.driver.pages.balloon))
    guest.driver.pages.give_back(pages)
    second = start_daemon()

    connect_again(guest, second)
    run_until([guest], lambda: found(second) != [])
    run_until([guest], lambda: balloon_bytes(guest) == 0 and guest.driver.idle)

    assert found(second) == ["its balloon is 4 KiB"]  # What it was asked for.
    low_mem.set_low()
    run_until([guest], lambda: balloon_bytes(guest) == MAXIMUM)


def test_balloon_of_just_the_page_that_it_is_asked_for_is_found_out_by_the_next_question(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    guest = make_guest(SETTINGS)
    with_balloon(guest, start_daemon, low_mem, STEP)
    driver = guest.driver
    driver.pages.give_back(driver.pages.balloon.take(len(driver.pages.balloon) - 1))
    second = start_daemon()

    connect_again(guest, second)
    run_until([guest], lambda: found(second) != [])

    assert found(second) == ["its balloon is 0 B"]
    assert balloon_bytes(guest) == 0


@fault("connects anew with its driver in mid-life")
def test_driver_that_answers_late_is_asked_again_and_nothing_is_decided_before(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    guest = make_guest(SETTINGS)
    with_balloon(guest, start_daemon, low_mem, HALF)
    low_mem.set_low()
    second = start_daemon()
    frontend = connect_again(guest, second)

    # The guest does not run, but its VMM hears: five polls are a quarter of a second.
    deadline = time.monotonic() + 60
    while frontend.requests.counters.config_changes < 4 and time.monotonic() < deadline:
        frontend.requests.serve_channel()
    assert frontend.requests.counters.config_changes >= 4
    assert (decisions(second), found(second)) == ([], [])

    run_until([guest], lambda: balloon_bytes(guest) == MAXIMUM and found(second) != [])
    assert len(found(second)) == 1


@fault("connects anew with its driver in mid-life")
@pytest.mark.parametrize("style", [QEMU, CROSVM], ids=lambda style: style.name)
def test_guest_that_is_reset_while_its_balloon_is_found_out_has_none(
    style: Style, start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    guest = make_guest(replace(SETTINGS, style=style))
    with_balloon(guest, start_daemon, low_mem, HALF)
    low_mem.set_low()
    second = start_daemon()
    frontend = connect_again(guest, second)
    second.wait(lambda: said(second, "balloon-sought") != [], deadline_s=60, what="it asks")

    frontend.stop()
    guest.driver.reset()
    guest.bind()
    run_until([guest], lambda: balloon_bytes(guest) == MAXIMUM)

    assert found(second) == []
    assert "adopted" not in [reason for reason, _ in decisions(second)]
    assert guest.ram.check().pages_corrupt == 0


def test_vm_that_is_paused_while_its_balloon_is_found_out_is_asked_again_later(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    guest = make_guest(SETTINGS)
    with_balloon(guest, start_daemon, low_mem, HALF)
    second = start_daemon()
    connect_again(guest, second)
    second.wait(lambda: said(second, "balloon-sought") != [], deadline_s=60, what="it asks")

    guest.pause()
    assert found(second) == []
    guest.resume()
    run_until([guest], lambda: found(second) != [])

    assert len(said(second, "balloon-sought")) == 1
    assert guest.ram.check().pages_corrupt == 0


@fault("connects anew with its driver in mid-life")
def test_balloond_killed_while_it_finds_out_the_next_one_goes_on_asking(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    guest = make_guest(SETTINGS)
    with_balloon(guest, start_daemon, low_mem, HALF)
    held = balloon_bytes(guest)
    low_mem.set_low()
    second = start_daemon("--keep-fds")
    connect_again(guest, second)
    second.wait(lambda: said(second, "balloon-sought") != [], deadline_s=60, what="it asks")

    second.kill()
    third = start_daemon("--keep-fds")
    run_until([guest], lambda: found(third) != [])
    run_until([guest], lambda: balloon_bytes(guest) == MAXIMUM)

    assert len(said(third, "taken-over")) == 1
    assert decisions(third)[0][0] == "adopted"
    assert held - 2 * STEP < decisions(third)[0][1] <= held
    assert (guest.disconnected, guest.ram.check().pages_corrupt) == ("", 0)


def test_balloon_that_was_found_out_is_known_to_the_next_balloond(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    guest = make_guest(SETTINGS)
    with_balloon(guest, start_daemon, low_mem, HALF)
    low_mem.set_low()
    second = start_daemon("--keep-fds")
    connect_again(guest, second)
    run_until([guest], lambda: found(second) != [])
    run_until([guest], lambda: balloon_bytes(guest) == MAXIMUM)

    second.kill()
    third = start_daemon("--keep-fds")
    run_until([guest], lambda: decisions(third) != [])

    assert decisions(third)[0] == ("restored", MAXIMUM)
    assert said(third, "balloon-sought") == []


def test_vm_too_small_for_a_balloon_gets_back_what_was_left_and_outlives_a_restart(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    guest = make_guest(SETTINGS)
    with_balloon(guest, start_daemon, low_mem, HALF)
    # By this flag it is a VM that keeps all.
    second = start_daemon("--keep-fds", "--vm-mem", "256M")
    connect_again(guest, second)
    run_until([guest], lambda: found(second) != [])
    run_until([guest], lambda: balloon_bytes(guest) == 0)

    second.kill()
    third = start_daemon("--keep-fds", "--vm-mem", "256M")
    wait_for_device([guest], third, "vm1")

    assert (guest.disconnected, errors(third)) == ("", [])


def test_vmm_that_connects_anew_to_the_same_balloond_is_found_out(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    daemon = start_daemon()
    guest = make_guest(SETTINGS)
    guest.connect(str(daemon.config.socket))
    guest.bind()
    low_mem.set_low()
    run_until([guest], lambda: balloon_bytes(guest) == MAXIMUM)

    connect_again(guest, daemon)
    run_until([guest], lambda: said(daemon, "target-reached", vm="vm2") != [])
    run_until([guest], lambda: balloon_bytes(guest) == MAXIMUM)

    assert len(said(daemon, "balloon-sought", vm="vm2")) == 1
    assert guest.ram.check().pages_corrupt == 0


def test_driver_that_begins_at_base_0_is_not_sounded(
    daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    guest = make_guest(SETTINGS)
    guest.connect(str(daemon.config.socket))
    guest.bind()
    low_mem.set_low()
    run_until([guest], lambda: balloon_bytes(guest) == MAXIMUM)
    assert said(daemon, "balloon-sought") == []


def test_dry_run_does_not_ask_a_driver_in_mid_life_for_its_balloon(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    guest, other = make_guest(SETTINGS), make_guest()
    with_balloon(guest, start_daemon, low_mem, HALF)
    before = balloon_bytes(guest)
    dry = start_daemon("--dry-run", name="dry")
    connect_again(guest, dry)
    other.connect(str(dry.config.socket))
    other.bind()
    low_mem.set_low()
    # As long as it takes to decide on the other guest's maximum, the first is asked three times
    # by a balloond that is no dry run.
    run_until([guest, other], lambda: decisions(dry, "vm2")[-1:] == [("at-maximum", MAXIMUM)])

    assert said(dry, "balloon-sought") == [FINDING_OUT]
    assert (balloon_bytes(guest), decisions(dry), found(dry)) == (before, [], [])
    assert errors(dry) == []
