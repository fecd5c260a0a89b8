"""The balloon of a real Linux guest: every queue, both ways, with the host's blocks as witness."""

import time

import pytest

from tests.harness.faults import fault
from tests.vm.ballooned_vm import BALLOON_S, BalloonedVm
from tests.vm.qemu import MIB

pytestmark = pytest.mark.vm


def test_new_target_reaches_the_driver_as_a_config_interrupt(vm: BalloonedVm) -> None:
    vm.probe("virtballoon_changed")
    before, began = vm.probe_hits(), time.monotonic()

    vm.inflate()

    # One for each level at most: the driver may find several levels at once when it looks. And one
    # each 30 s, at the policy's speed, for as long as it has not given all yet.
    told_again = (time.monotonic() - began) * vm.config.speed / 30
    assert before == 0
    assert 1 <= vm.probe_hits() <= 16 + told_again


def test_inflate_frees_the_hosts_blocks(vm: BalloonedVm) -> None:
    vm.fill_page_cache()
    before_bytes = vm.host_bytes()
    # All but what the guest's kernel never touches: only then is each page taken a page freed.
    assert before_bytes > 0.95 * vm.config.memory_mib * MIB

    vm.inflate()

    freed_bytes = before_bytes - vm.host_bytes()
    assert freed_bytes > 0.95 * vm.max_bytes


def test_deflate_gives_the_guest_its_memory_back(vm: BalloonedVm) -> None:
    vm.inflate()
    vm.fill_page_cache()
    inflated_bytes = vm.host_bytes()

    vm.deflate()
    vm.fill_page_cache()

    assert inflated_bytes < 1.02 * (vm.config.memory_mib * MIB - vm.max_bytes)
    assert vm.host_bytes() > 0.95 * vm.config.memory_mib * MIB


def test_file_in_the_guests_memory_survives_inflate_and_deflate(vm: BalloonedVm) -> None:
    # As large as fits beside a full balloon: the driver must take all that lies between its pages.
    before = vm.write_file(96)
    vm.fill_page_cache()

    vm.inflate()
    inflated = vm.checksum()
    vm.deflate()
    vm.fill_page_cache()
    deflated = vm.checksum()

    assert (inflated, deflated) == (before, before)


def test_statistics_are_what_the_guest_says_of_itself(vm: BalloonedVm) -> None:
    vm.write_file(64)
    vm.inflate()

    # Not low, but not enough to give back either: a decision, and with it a look at the guest.
    vm.host.set_available(vm.host.margin_mib)
    vm.wait_reason("not-enough-back")
    # Asked each time: what waits in the guest's per-CPU lists becomes free little by little.
    vm.daemon.wait(
        lambda: (
            abs(vm.daemon.guest_statistics()["stat_memfree"] - vm.guest.meminfo_bytes("MemFree"))
            < 8 * MIB
        ),
        deadline_s=BALLOON_S,
        what="statistics that say as much is free as the guest's kernel does",
    )
    statistics = vm.daemon.guest_statistics()

    assert statistics["stat_memtot"] == vm.guest.meminfo_bytes("MemTotal")
    assert statistics["stat_caches"] >= 64 * MIB
    assert statistics["stat_minflt"] > 0
    assert statistics["stat_swap_in"] == statistics["stat_swap_out"] == 0


def test_free_pages_are_reported_and_freed_without_a_target(vm: BalloonedVm) -> None:
    vm.fill_page_cache()
    filled_bytes = vm.host_bytes()

    vm.drop_page_cache()

    # The guest reports blocks of 2 MiB and more, some 2 s after it freed them.
    vm.daemon.wait(
        lambda: filled_bytes - vm.host_bytes() > 200 * MIB,
        deadline_s=BALLOON_S,
        what="200 MiB freed by page reporting alone",
    )
    assert vm.daemon.target_bytes() == 0
    assert vm.guest.balloon_bytes() == 0


@fault("cannot spare what the target asks for; is in need itself")
def test_target_beyond_what_the_guest_can_give_waits_until_it_can(vm: BalloonedVm) -> None:
    before = vm.write_file(256)

    vm.host.set_low()
    vm.wait_target(vm.max_bytes)
    vm.daemon.wait(
        lambda: vm.guest.meminfo_bytes("MemFree") < 32 * MIB,
        deadline_s=BALLOON_S,
        what="the guest has given what it can",
    )
    squeezed_bytes = vm.guest.balloon_bytes()
    squeezed = vm.checksum()
    vm.guest.run("rm /tmp/file")
    vm.wait_balloon(vm.max_bytes)

    assert 0 < squeezed_bytes < vm.max_bytes
    assert squeezed == before
    assert vm.oom_kills() == []


@fault("cannot spare what the target asks for; is in need itself")
def test_guest_in_need_takes_pages_out_of_a_full_balloon(vm: BalloonedVm) -> None:
    vm.inflate()

    # More than half of its memory, and half is in the balloon: VIRTIO_BALLOON_F_DEFLATE_ON_OOM.
    before = vm.write_file(256)
    deflated_bytes = vm.guest.balloon_bytes()
    vm.deflate()

    assert deflated_bytes < vm.max_bytes
    assert vm.checksum() == before
    assert vm.oom_kills() == []
