"""Device and controller killed under a real guest: neither guest nor QEMU may notice."""

import pytest

from tests.harness.low_mem_dir import LowMemDir
from tests.vm.ballooned_vm import BALLOON_S, BalloonedVm, VmConfig
from tests.vm.running import Running

pytestmark = pytest.mark.vm

SLOW = 60
"""The policy's speed here: 16 levels in about a second, time enough to kill in the middle."""


@pytest.fixture
def kept_vm(vms: Running, suite: str, tmp_path_factory: pytest.TempPathFactory) -> BalloonedVm:
    """A VM of this kernel whose balloond may be killed."""
    host = LowMemDir(tmp_path_factory.mktemp("host") / "low_mem", margin_mib=400)
    return vms.own(VmConfig(suite, speed=SLOW, keep_fds=True), f"{suite}-kills", host)


def wait_balloon_over(vm: BalloonedVm, balloon_bytes: int) -> None:
    vm.daemon.wait(
        lambda: vm.guest.balloon_bytes() > balloon_bytes,
        deadline_s=BALLOON_S,
        what=f"the guest's balloon holds over {balloon_bytes} bytes",
    )


def test_device_and_balloond_killed_while_inflating_file_and_target_stay(
    kept_vm: BalloonedVm,
) -> None:
    vm = kept_vm
    before = vm.write_file(64)

    vm.host.set_low()
    for part in (0, 1, 2):
        wait_balloon_over(vm, part * vm.max_bytes // 8)
        vm.kill_device()
    for part in (3, 4):
        wait_balloon_over(vm, part * vm.max_bytes // 8)
        vm.replace_daemon()
    vm.wait_balloon(vm.max_bytes)

    assert vm.checksum() == before


def test_balloond_killed_while_deflating_and_idle_all_comes_back(kept_vm: BalloonedVm) -> None:
    vm = kept_vm
    before = vm.write_file(64)
    vm.inflate()

    vm.replace_daemon()
    vm.host.set_plenty()
    vm.daemon.wait(
        lambda: vm.guest.balloon_bytes() < vm.max_bytes,
        deadline_s=BALLOON_S,
        what="the guest's balloon shrinks",
    )
    vm.replace_daemon()
    vm.wait_balloon(0)

    assert vm.checksum() == before
