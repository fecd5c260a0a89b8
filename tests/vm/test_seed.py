"""The test of crosvm's change "balloon: Implement device policy" (2018), automated.

In the words of its commit message: "Start 2 VMs and write out a large file (size > system RAM) in
each. Observe /sys/kernel/mm/chromeos-low_mem/available and see that the available memory steadily
decreases until it goes under the low memory margin at which point the available memory bounces
back up as crosvm frees up pages."

The host here is a budget: the available memory is the budget minus the memory that the host holds
for both guests. Without a balloon the guests would need more than the budget.
"""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness.low_mem_dir import LowMemDir
from tests.harness.waiting import wait_until
from tests.vm.ballooned_vm import BalloonedVm, VmConfig
from tests.vm.images import GUEST_SUITES
from tests.vm.qemu import MIB
from tests.vm.running import BUILD, Running
from tests.vm.seed_chart import Sample, draw

pytestmark = pytest.mark.vm

BUDGET_MIB = 1000
MARGIN_MIB = 300
SPEED = 30
"""Times crosvm's: 33 ms from level to level, which the guests can follow under TCG."""

FILE_MIB = 560
PIECE_MIB = 16
CHART = BUILD / "seed-test.png"


class BudgetHost:
    """A host whose memory is a budget that its guests use up."""

    def __init__(self, low_mem: LowMemDir) -> None:
        self.vms: list[BalloonedVm] = []
        self.samples: list[Sample] = []
        self._low_mem = low_mem
        self._start_s: float | None = None

    def account(self) -> Sample:
        """Tells balloond what is left now."""
        if self._start_s is None:
            self._start_s = time.monotonic()
        guests = [vm.host_bytes() // MIB for vm in self.vms]
        sample = Sample(
            seconds=time.monotonic() - self._start_s,
            available_mib=BUDGET_MIB - sum(guests),
            guests_mib=guests,
            targets_mib=[vm.daemon.target_bytes() // MIB for vm in self.vms],
        )
        self._low_mem.set_available(max(0, sample.available_mib))
        self.samples.append(sample)
        return sample

    def wait(self, condition: Callable[[], bool], *, deadline_s: float, what: str) -> None:
        """Waits for a condition while it keeps the account, some hundred times a second."""

        def accounted() -> bool:
            self.account()
            return condition()

        wait_until(accounted, deadline_s=deadline_s, what=what, seen=lambda: self.samples[-1])


def test_available_falls_below_the_margin_and_bounces_back(vms: Running, tmp_path: Path) -> None:
    low_mem = LowMemDir(tmp_path / "low_mem", margin_mib=MARGIN_MIB)
    host = BudgetHost(low_mem)
    for suite in GUEST_SUITES:
        vm = vms.own(_with_disk(suite, tmp_path), f"{suite}-seed", host=low_mem)
        (tmp_path / f"{suite}.img").unlink()  # QEMU has it open: it ends with QEMU.
        vm.guest.run("mke2fs /dev/vda && mount -t ext4 /dev/vda /mnt")
        vm.guest.run(f"dd if=/dev/urandom of=/tmp/piece bs=1M count={PIECE_MIB}")
        host.vms.append(vm)

    try:
        written = _run_in_all(host, "md5sum </tmp/piece")
        _run_in_all(host, _each_piece("$dd if=/tmp/piece of=/mnt/file conv=notrunc seek=$n"))
        check = "$dd if=/mnt/file of=/tmp/read skip=$n; md5sum </tmp/read"
        read = _run_in_all(host, f"{_each_piece(check)} | sort -u")
        _run_in_all(host, "rm /mnt/file && sync")
        host.wait(
            lambda: all(vm.daemon.target_bytes() == 0 for vm in host.vms),
            deadline_s=120,
            what="all of the balloon is given back",
        )
    finally:
        # Also of a run that failed: there it is wanted most.
        _draw(host)

    available = [sample.available_mib for sample in host.samples]
    low = [mib < MARGIN_MIB for mib in available]
    assert any(low), "available never fell below the margin"
    assert not all(low[low.index(True) :]), "available never came back over the margin"
    assert min(available) > 0, "the host ran out of memory"
    assert read == written


def _draw(host: BudgetHost) -> None:
    names = [f"Linux {vm.guest.release.split('+')[0].split('-')[0]}" for vm in host.vms]
    story = f"Two guests of 512 MiB each write and read a file of {FILE_MIB} MiB"
    place = f"on a host with {BUDGET_MIB} MiB for them (policy at {SPEED} times its speed)"
    draw(host.samples, names, MARGIN_MIB, f"{story}\n{place}", CHART)


def _with_disk(suite: str, directory: Path) -> VmConfig:
    disk = directory / f"{suite}.img"
    with disk.open("wb") as image:
        image.truncate(2 * FILE_MIB * MIB)
    return VmConfig(suite, speed=SPEED, disk=disk)


def _each_piece(command: str) -> str:
    numbers = f"$(seq 0 {FILE_MIB // PIECE_MIB - 1})"
    return f"dd='dd status=none bs={PIECE_MIB}M count=1'; for n in {numbers}; do {command}; done"


def _run_in_all(host: BudgetHost, command: str) -> list[str]:
    """Runs a command in all guests at the same time."""
    begun = [(vm.guest, vm.guest.begin(command)) for vm in host.vms]
    host.wait(
        lambda: all(guest.is_done(command) for guest, command in begun),
        deadline_s=300,
        what=f"the guests have run `{command}`",
    )
    return [guest.finish(command) for guest, command in begun]
