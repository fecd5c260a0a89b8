"""The driver's life: taken from the device and put back, and a reboot of the whole guest."""

from pathlib import Path

import pytest

from tests.harness.faults import fault
from tests.harness.low_mem_dir import LowMemDir
from tests.vm.ballooned_vm import BalloonedVm, VmConfig
from tests.vm.qemu import MIB
from tests.vm.running import Running

pytestmark = pytest.mark.vm

_DRIVER = "/sys/bus/virtio/drivers/virtio_balloon"


def test_unbind_returns_the_balloon_and_bind_inflates_it_again(vm: BalloonedVm) -> None:
    vm.inflate()
    device = vm.guest.run("balloon_device")

    vm.guest.run(f"echo {device} > {_DRIVER}/unbind")
    unbound_bytes = vm.guest.balloon_bytes()
    vm.fill_page_cache()
    used_bytes = vm.host_bytes()
    vm.guest.run(f"echo {device} > {_DRIVER}/bind")
    vm.wait_balloon(vm.max_bytes)

    assert unbound_bytes == 0
    assert used_bytes > 0.95 * vm.config.memory_mib * MIB
    assert used_bytes - vm.host_bytes() > 0.95 * vm.max_bytes


@fault("driver unbound and bound")
def test_reboot_while_inflated_inflates_the_new_kernels_balloon(vm: BalloonedVm) -> None:
    vm.inflate()

    vm.guest.reboot()
    vm.fill_page_cache()
    vm.wait_balloon(vm.max_bytes)
    inflated_bytes = vm.host_bytes()
    vm.deflate()

    assert inflated_bytes < 1.05 * (vm.config.memory_mib * MIB - vm.max_bytes)


@fault("target changes while the guest boots")
def test_targets_that_change_during_boot_and_reboot_reach_the_driver(
    vms: Running, suite: str, tmp_path: Path
) -> None:
    # 0.5 s from level to level: 7.5 s for all of them, which is longer than the driver needs to
    # come up, also on a busy machine. Targets wait in the config space until then.
    host = LowMemDir(tmp_path / "low_mem", margin_mib=400)
    host.set_low()
    vm = vms.own(VmConfig(suite, speed=2), f"{suite}-boot", host)
    booted_at_bytes = vm.daemon.target_bytes()

    vm.guest.reboot()

    vm.wait_balloon(vm.max_bytes)
    assert 0 < booted_at_bytes < vm.max_bytes
