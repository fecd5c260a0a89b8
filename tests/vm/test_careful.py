"""Real guests that need the memory that they are asked for: careful VMs are let go, others not.

The guest reads 300 of its 512 MiB from its disk, over and over. Its page cache holds them until
the balloon takes half of its memory; then it reads all of them anew each time.
"""

import time
from pathlib import Path

import pytest

from tests.harness.faults import fault
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.vmm_files import figures_of
from tests.harness.whole_vm import facts
from tests.vm.ballooned_vm import BALLOON_S, BalloonedVm, VmConfig
from tests.vm.qemu import MIB
from tests.vm.running import Running

pytestmark = pytest.mark.vm

SPEED = 2.0
"""All levels up take 8 s: slow enough for statistics each second to show what a step does."""

READS_MIB = 300
SECONDS = 40


def start(vms: Running, suite: str, directory: Path, *, careful: bool) -> BalloonedVm:
    """A guest that reads the same part of its disk for ever, and has read it once."""
    name = f"{suite}-{'careful' if careful else 'seed'}"
    disk = directory / f"{name}.img"
    with disk.open("wb") as image:
        image.truncate(READS_MIB * MIB)
    low_mem = LowMemDir(directory / name, margin_mib=400)
    config = VmConfig(suite, speed=SPEED, disk=disk, careful=careful)
    vm = vms.own(config, name, low_mem)
    # Through a descriptor that stays open: closing the disk would drop its pages.
    read = f"dd if=/dev/vda of=/dev/null bs=1M count={READS_MIB} 2>/dev/null"
    vm.guest.run(f"exec 9</dev/vda && {read}")
    vm.guest.run(f"(while :; do {read}; sleep 0.2; done) >/dev/null 2>&1 &")
    return vm


def seconds_in_need(vm: BalloonedVm, seconds: int) -> int:
    """In how many of the next seconds the guest reads from its disk what it had in memory."""
    qemu = figures_of(vm.guest.qemu.pid)
    found, before = 0, qemu.read_bytes()
    assert before is not None
    for _ in range(seconds):
        time.sleep(1.0)
        now = qemu.read_bytes()
        assert now is not None
        found += now - before > 2 * MIB
        before = now
    return found


@fault("a guest is in need")
def test_guest_whose_files_do_not_fit_is_let_go_and_by_the_seed_alone_it_is_not(
    vms: Running, suite: str, tmp_path: Path
) -> None:
    careful = start(vms, suite, tmp_path, careful=True)
    careful.host.set_low()
    careful_s = seconds_in_need(careful, SECONDS)
    let_go = facts(careful.daemon, "guest-in-need")
    careful_bytes, careful_kills = careful.guest.balloon_bytes(), careful.oom_kills()
    careful.guest.run("kill $!")

    seed = start(vms, suite, tmp_path, careful=False)
    seed.host.set_low()
    seed_s = seconds_in_need(seed, SECONDS)

    print(f"{suite}: in need for {careful_s} s of {SECONDS}, by the seed alone {seed_s} s")
    assert [set(record["signs"]) <= {"reads-disk", "major-faults"} for record in let_go] == [True]
    assert (careful_bytes, careful_kills) == (0, [])
    assert seed.guest.balloon_bytes() == seed.max_bytes
    assert careful_s < seed_s / 3


def test_guest_with_page_cache_that_it_does_not_need_gives_all_of_it(
    vms: Running, suite: str, tmp_path: Path
) -> None:
    vm = vms.own(
        VmConfig(suite, speed=SPEED, careful=True),
        f"{suite}-cold",
        LowMemDir(tmp_path / "cold", margin_mib=400),
    )
    vm.fill_page_cache()

    vm.inflate()
    vm.daemon.wait(
        lambda: vm.daemon.decision()["reason"] == "at-maximum",
        deadline_s=BALLOON_S,
        what="balloond looks again at its maximum",
    )

    assert facts(vm.daemon, "guest-in-need", "squeeze-stalled", "balloon-contested") == []
    assert vm.guest.balloon_bytes() == vm.max_bytes
