"""The whole balloond and a real Firecracker, which a configuration file names."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from balloon_daemon.units import MIB
from tests.harness.daemon import Daemon, DaemonConfig
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.makers import MARGIN_MIB
from tests.harness.waiting import wait_until
from tests.vm.firecracker import BALLOON, Firecracker
from tests.vm.firecracker_images import needs_kvm, ready_firecracker

pytestmark = [pytest.mark.vm, needs_kvm]

VM_MEM_MIB = 512
FOUND_MIB = 10
MOST_MIB = VM_MEM_MIB // 2
"""The balloon that it has without balloond, and the most that its floor leaves."""

SPEED = 100.0
"""A release of 16 steps, which takes 8 minutes, takes 5 s."""

StartDaemon = Callable[[str], Daemon]


@pytest.fixture
def low_mem(tmp_path: Path) -> LowMemDir:
    return LowMemDir(tmp_path / "low-mem", margin_mib=MARGIN_MIB)


@pytest.fixture
def vmm() -> Iterator[Firecracker]:
    """A microVM whose guest's driver listens, with a balloon of 10 MiB that is not balloond's."""
    vmm = Firecracker(ready_firecracker(), VM_MEM_MIB, BALLOON | {"amount_mib": FOUND_MIB})
    try:
        vmm.start()
        vmm.wait_ready()
        wait_until(lambda: vmm.actual_mib() == FOUND_MIB, what="its own balloon")
        yield vmm
    finally:
        vmm.stop()


@pytest.fixture
def start(vmm: Firecracker, low_mem: LowMemDir, tmp_path: Path) -> Iterator[StartDaemon]:
    """Starts a balloond that drives that microVM; what still runs at the end is killed."""
    config = tmp_path / "balloond.toml"
    config.write_text(f'[vm.fire]\nfirecracker = "{vmm.socket}"\nfloor = "256M"\n')
    daemons: list[Daemon] = []

    def start(name: str) -> Daemon:
        options = ("--config", str(config))
        own = DaemonConfig(tmp_path / "own.sock", None, low_mem, SPEED, options)
        daemons.append(Daemon(own, tmp_path / name))
        return daemons[-1]

    yield start
    for daemon in daemons:
        daemon.kill()


def wait_balloon(vmm: Firecracker, daemon: Daemon, mib: int) -> None:
    daemon.wait(lambda: vmm.actual_mib() == mib, what=f"a balloon of {mib} MiB")


def test_host_that_runs_low_gets_the_guests_memory_and_gives_it_back(
    vmm: Firecracker, low_mem: LowMemDir, start: StartDaemon
) -> None:
    daemon = start("balloond")
    before = vmm.held_bytes()

    low_mem.set_low()
    wait_balloon(vmm, daemon, MOST_MIB)
    assert abs(before - vmm.held_bytes() - (MOST_MIB - FOUND_MIB) * MIB) < 4 * MIB
    low_mem.set_plenty()
    wait_balloon(vmm, daemon, FOUND_MIB)
    daemon.stop()
    vmm.tell("use 400")
    vmm.wait_said("used 400")
    vmm.tell("check")
    vmm.wait_said("whole")


def test_killed_balloond_leaves_the_balloon_and_the_next_goes_on_and_gives_back_its_own(
    vmm: Firecracker, low_mem: LowMemDir, start: StartDaemon
) -> None:
    first = start("first")
    low_mem.set_low()
    wait_balloon(vmm, first, MOST_MIB)
    first.kill()

    second = start("second")
    second.wait(
        lambda: any(record["event"] == "vm-driven" for record in second.records()),
        what="the next balloond drives the VM",
    )
    assert vmm.actual_mib() == MOST_MIB
    second.stop()
    assert vmm.actual_mib() == FOUND_MIB


def test_guest_in_need_gets_all_back_at_once_and_is_left_alone(
    vmm: Firecracker, low_mem: LowMemDir, start: StartDaemon
) -> None:
    daemon = start("balloond")
    low_mem.set_low()
    wait_balloon(vmm, daemon, MOST_MIB)

    vmm.tell("use 200")  # leaves 48 MiB of what is not in the balloon
    wait_balloon(vmm, daemon, FOUND_MIB)
    vmm.tell("check")
    vmm.wait_said("whole")
    assert vmm.actual_mib() == FOUND_MIB
    daemon.stop()
