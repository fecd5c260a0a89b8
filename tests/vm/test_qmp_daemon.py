"""The whole balloond with a real guest of QEMU's own balloon, by its monitor."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.daemon import Daemon, DaemonConfig
from tests.harness.faults import fault
from tests.harness.low_mem_dir import LowMemDir
from tests.vm.guest import Guest
from tests.vm.images import Images
from tests.vm.qemu import MIB, QemuConfig
from tests.vm.running import SESSION_LOGS

pytestmark = pytest.mark.vm

VM_MIB, FLOOR_MIB = 512, 352
MOST = (VM_MIB - FLOOR_MIB) * MIB
"""So much that an idle guest is not in need: it has some 370 MiB available."""

SPEED = 100
"""All is given back in 6 s."""
DEADLINE_S = 120.0


class Driven:
    """A guest that a balloond drives by its monitor; balloonds may follow one another."""

    def __init__(self, guest: Guest, directory: Path, floor_mib: int = FLOOR_MIB) -> None:
        self.guest = guest
        self.host = LowMemDir(directory / "low_mem", margin_mib=400)
        self._directory = directory
        self._started = 0
        config = directory / "balloond.toml"
        path = guest.qemu.monitor_path
        config.write_text(f'[vm.web]\nqmp = "{path}"\nfloor = "{floor_mib}M"\n')
        self._config = DaemonConfig(
            directory / "sock", None, self.host, SPEED, ("--config", str(config))
        )
        self.start()

    def start(self) -> None:
        """Starts a balloond, and waits until it drives the guest."""
        self._started += 1
        logs = SESSION_LOGS / f"qmp-daemon-{self._directory.name}-{self._started}"
        self.daemon = Daemon(self._config, logs)
        self.wait_event("vm-driven")

    def wait_event(self, event: str) -> None:
        """Waits for an event in balloond's log."""
        self.daemon.wait(
            lambda: any(record["event"] == event for record in self.daemon.records()),
            what=event,
            deadline_s=DEADLINE_S,
        )

    def wait_balloon(self, balloon_bytes: int) -> None:
        """Waits until the guest's driver has brought the balloon to exactly this size."""
        self.daemon.wait(
            lambda: self.guest.balloon_bytes() == balloon_bytes,
            what=f"a balloon of {balloon_bytes // MIB} MiB",
            deadline_s=DEADLINE_S,
        )

    def squeeze(self) -> None:
        """Makes the host low on memory until the guest has given all that it may be asked for."""
        self.host.set_low()
        self.wait_balloon(MOST)
        self.host.set_available(self.host.margin_mib)


@pytest.fixture(scope="module")
def guest(images: Images) -> Iterator[Guest]:
    """A guest with QEMU's own balloon."""
    config = QemuConfig("forky", VM_MIB, qemu_balloon=True)
    guest = Guest(images, config, SESSION_LOGS / "qmp-daemon")
    yield guest
    guest.stop()


@pytest.fixture
def driven(guest: Guest, tmp_path: Path) -> Iterator[Driven]:
    """That guest under a balloond of its own, with an empty balloon."""
    driven = Driven(guest, tmp_path)
    yield driven
    driven.daemon.kill()


def test_guest_is_squeezed_while_the_host_is_low_and_gets_all_back(driven: Driven) -> None:
    driven.guest.run("dd if=/dev/zero of=/tmp/file bs=1M count=300; rm /tmp/file")
    before = driven.guest.qemu.memory_blocks_bytes()

    driven.squeeze()
    squeezed = driven.guest.qemu.memory_blocks_bytes()
    driven.host.set_plenty()
    driven.wait_balloon(0)

    assert squeezed <= FLOOR_MIB * MIB < before
    driven.daemon.check_log()


@fault("driven VMs' balloond is killed")
def test_balloon_outlives_balloond_and_the_next_one_gives_it_back(driven: Driven) -> None:
    driven.squeeze()
    driven.daemon.kill()
    driven.start()
    kept = driven.guest.balloon_bytes()
    driven.host.set_plenty()
    driven.wait_balloon(0)
    assert kept == MOST
    driven.daemon.check_log()


def test_stop_gives_back_what_balloond_took(driven: Driven) -> None:
    driven.squeeze()
    driven.daemon.stop()
    assert driven.guest.balloon_bytes() == 0


@fault("the guest of a driven VM is reset")
def test_guest_that_is_reset_is_squeezed_again_once_its_driver_listens(driven: Driven) -> None:
    driven.squeeze()
    driven.guest.qemu.monitor.execute("system_reset")
    driven.guest.wait_boot()
    driven.wait_balloon(MOST)
    driven.wait_event("no-driver-yet")
    driven.host.set_plenty()
    driven.wait_balloon(0)
    driven.daemon.check_log()


def test_vm_that_ends_is_lost_and_leaves_balloond_running(driven: Driven) -> None:
    driven.squeeze()
    driven.guest.qemu.monitor.execute("quit")
    driven.wait_event("vm-lost")
    driven.daemon.stop()


LOCKED_MIB = 1024
LOCKED = (
    *("-object", f"memory-backend-ram,id=locked,size={LOCKED_MIB}M"),
    *("-machine", "memory-backend=locked", "-overcommit", "mem-lock=on-fault"),
)
"""Memory of no file, whose pages the kernel keeps once they were touched (mlock2): it refuses the
madvise(MADV_DONTNEED) by which QEMU frees what is in the balloon."""


@pytest.fixture
def locked(images: Images, tmp_path: Path) -> Iterator[Driven]:
    """A guest whose memory is locked, all of it touched, under a balloond of its own."""
    config = QemuConfig("forky", LOCKED_MIB, qemu_balloon=True, options=LOCKED)
    guest = Guest(images, config, SESSION_LOGS / "qmp-locked")
    try:
        guest.run("dd if=/dev/zero of=/tmp/file bs=1M count=700; rm /tmp/file")
        locked = Driven(guest, tmp_path, LOCKED_MIB // 2)
        yield locked
        locked.daemon.kill()
    finally:
        guest.stop()


@fault("the host does not get what a guest gives")
def test_balloon_of_locked_memory_frees_nothing_and_that_is_said(locked: Driven) -> None:
    locked.host.set_low()
    locked.wait_event("balloon-missing")
    (said,) = (r for r in locked.daemon.records() if r["event"] == "balloon-missing")
    locked.daemon.stop()
    assert said["cause"] == "never-freed"
    assert said["missing_bytes"] > said["balloon_bytes"] // 2 > 0
    assert locked.guest.balloon_bytes() == 0
