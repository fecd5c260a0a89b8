"""Real guests whose kernels fill the pages that they free with zeros.

Debian's kernels are built without CONFIG_PAGE_POISONING: none of them looks for a pattern there.
"""

from pathlib import Path

import pytest

from tests.harness.low_mem_dir import LowMemDir
from tests.harness.whole_vm import facts
from tests.vm.ballooned_vm import BALLOON_S, BalloonedVm, VmConfig
from tests.vm.qemu import MIB
from tests.vm.running import Running

pytestmark = pytest.mark.vm

FILE_MIB = 256


def start(vms: Running, suite: str, options: str, tmp_path: Path) -> BalloonedVm:
    """A VM whose kernel has these options, and whose balloond may be killed."""
    config = VmConfig(suite, memory_mib=768, keep_fds=True, kernel_options=options)
    return vms.own(config, f"{suite}-{options}", LowMemDir(tmp_path / "low", margin_mib=400))


def delete_file_and_wait(vm: BalloonedVm) -> None:
    """Deletes what ``write_file`` wrote, and waits until the host has 80 % of it back.

    The rest is in pieces that are smaller than what a kernel reports, and in its lists of each
    processor: up to a tenth of 512 MiB with Linux 7.2, with ``init_on_free=1`` as without.
    """
    held_bytes = vm.host_bytes()
    vm.guest.run("rm /tmp/file")
    vm.daemon.wait(
        lambda: held_bytes - vm.host_bytes() >= 0.8 * FILE_MIB * MIB,
        deadline_s=BALLOON_S,
        what="80 % of a deleted file freed by page reporting alone",
    )


def test_guest_that_clears_freed_pages_gives_a_deleted_file_back_by_reports(
    vms: Running, suite: str, tmp_path: Path
) -> None:
    vm = start(vms, suite, "init_on_free=1", tmp_path)

    vm.write_file(FILE_MIB)
    delete_file_and_wait(vm)
    vm.replace_daemon()
    vm.write_file(FILE_MIB)
    delete_file_and_wait(vm)
    # Smaller, as half of the memory goes into the balloon.
    before = vm.write_file(FILE_MIB // 2)
    vm.inflate()
    vm.deflate()

    assert vm.checksum() == before
    assert facts(vm.daemon, "reports-not-freed") == []
    assert vm.guest.balloon_bytes() == 0


def test_guest_that_clears_freed_pages_does_so_after_a_restart_with_a_full_balloon(
    vms: Running, suite: str, tmp_path: Path
) -> None:
    vm = start(vms, suite, "init_on_free=1", tmp_path)
    vm.inflate()

    # The next kernel writes poison_val, and QEMU with it what it remembers of actual.
    vm.host.set_plenty()
    vm.guest.reboot()
    vm.wait_target(0)
    vm.wait_balloon(0)
    vm.write_file(FILE_MIB)
    delete_file_and_wait(vm)

    assert facts(vm.daemon, "reports-not-freed") == []
