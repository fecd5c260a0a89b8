"""The shipped unit's watchdog under a real systemd: a controller that hangs, with a VM."""

from collections.abc import Iterator

import pytest

from balloon_daemon.fake_guest.machine import FakeGuest, GuestSettings, run
from balloon_daemon.fake_guest.pages import Population
from balloon_daemon.units import MIB, PAGE_SIZE
from tests.harness.faults import fault
from tests.harness.waiting import HANG_S
from tests.vm.running import SESSION_LOGS
from tests.vm.service_host import ServiceHost
from tests.vm.service_root import ready_root

pytestmark = pytest.mark.vm

SETTINGS = GuestSettings(
    512 * MIB, population=Population(touched_bytes=128 * MIB, pinned_bytes=32 * MIB)
)
MAXIMUM = 256 * MIB
DROP_IN = "run/systemd/system/balloond.service.d"


@pytest.fixture(scope="module")
def host() -> Iterator[ServiceHost]:
    """The machine, booted, on which the watchdog waits for 6 s and not for a minute."""
    host = ServiceHost(ready_root(), SESSION_LOGS / "service-watchdog")
    try:
        host.begin()
        host.configure("--speed", "20", "--user", "balloond")
        host.path(DROP_IN).mkdir(parents=True)
        (host.path(DROP_IN) / "watchdog.conf").write_text("[Service]\nWatchdogSec=6\n")
        host.run("systemctl", "daemon-reload")
        host.run("systemctl", "start", "balloond")
        yield host
    finally:
        host.stop()


@pytest.fixture
def guest(host: ServiceHost) -> Iterator[FakeGuest]:
    guest = FakeGuest(SETTINGS)
    guest.connect(str(host.socket))
    guest.bind()
    yield guest
    guest.close()


def balloon_bytes(guest: FakeGuest) -> int:
    return guest.driver.actual * PAGE_SIZE


@fault("controller's event loop stands still (SIGSTOP, a bug), under systemd")
def test_controller_that_hangs_is_killed_by_the_watchdog_and_the_next_goes_on_with_the_vm(
    host: ServiceHost, guest: FakeGuest
) -> None:
    host.low_mem.set_low()
    run([guest], lambda: balloon_bytes(guest) == MAXIMUM)
    hung = host.main_pid()
    assert host.unit("StatusText").startswith(("0 VMs, ", "1 VM, "))

    host.run("systemctl", "kill", "--signal=STOP", "--kill-who=main", "balloond")
    run([guest], lambda: host.main_pid() not in (0, hung), HANG_S)

    # The last step's size may not have been stored yet when the controller hung.
    run([guest], lambda: host.unit("StatusText").startswith("1 VM, balloons 2"), HANG_S)
    assert host.unit("NRestarts") == "1"
    assert "goes on where another balloond left" in "\n".join(host.said_by(host.main_pid()))
    assert guest.disconnected == ""
    assert guest.driver.counters.deflate_buffers == 0
    check = guest.ram.check()
    assert (check.pages_corrupt, check.balloon_resident) == (0, 0)
    host.low_mem.set_plenty()
    run([guest], lambda: balloon_bytes(guest) == 0, HANG_S)
