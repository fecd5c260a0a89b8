"""The shipped unit under a real systemd, with the configuration file that it reads."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from balloon_daemon.fake_guest.machine import FakeGuest, GuestSettings, run
from balloon_daemon.fake_guest.pages import Population
from balloon_daemon.units import MIB, PAGE_SIZE
from tests.harness.faults import fault
from tests.harness.waiting import HANG_S, wait_until
from tests.vm.running import SESSION_LOGS
from tests.vm.service_host import ServiceHost
from tests.vm.service_root import ready_root

pytestmark = pytest.mark.vm

SETTINGS = GuestSettings(
    512 * MIB, population=Population(touched_bytes=128 * MIB, pinned_bytes=32 * MIB)
)
MAXIMUM = 256 * MIB
FILE = """\
[vm.web]
vhost_user = "/run/balloond/web.sock"
[vm.db]
vhost_user = "/run/balloond/db.sock"
"""
DROP_IN = """\
[vm.db]
ceiling = 0
"""


@pytest.fixture(scope="module")
def host() -> Iterator[ServiceHost]:
    """The machine, booted, with a configuration file."""
    host = ServiceHost(ready_root(), SESSION_LOGS / "service-file")
    print(f"the service's machine keeps its logs in {host.log_dir}")
    host.begin()
    host.configure("--speed", "20", "--user", "balloond")
    host.path("etc/balloond/balloond.d").mkdir(parents=True)
    host.path("etc/balloond/balloond.d/10-db.toml").write_text(DROP_IN)
    host.path("etc/balloond/balloond.toml").write_text(FILE)
    host.run("systemctl", "start", "balloond")
    yield host
    host.stop()


def attached(host: ServiceHost, name: str) -> FakeGuest:
    guest = FakeGuest(SETTINGS)
    guest.connect(str(host.path(f"run/balloond/{name}.sock")))
    guest.bind()
    return guest


def is_hung_up_on(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as vmm:
        vmm.settimeout(HANG_S)
        vmm.connect(str(path))
        return vmm.recv(1) == b""


@fault("`systemctl restart`, SIGUSR1")
def test_named_vms_keep_names_limits_and_sockets_over_a_restart_of_the_service(
    host: ServiceHost,
) -> None:
    guests = [attached(host, "web"), attached(host, "db")]
    web, db = guests
    sockets = [os.stat(host.path(f"run/balloond/{name}.sock")) for name in ("web", "db")]
    assert not host.socket.exists()
    host.low_mem.set_low()
    run(guests, lambda: web.driver.actual > 0)
    before = host.main_pid()

    with host.running("systemctl", "restart", "balloond") as restart:
        run(guests, lambda: restart.poll() is not None)
    run(guests, lambda: web.driver.actual * PAGE_SIZE == MAXIMUM)

    said = host.said_by(host.main_pid())
    assert host.main_pid() != before
    for name in ("web", "db"):
        assert any(line.startswith(f"{name}: goes on where another") for line in said)
    assert db.driver.actual == 0
    for name, was in zip(("web", "db"), sockets, strict=True):
        assert os.path.samestat(os.stat(host.path(f"run/balloond/{name}.sock")), was)
    assert host.errors() == []
    assert is_hung_up_on(host.path("run/balloond/web.sock"))
    assert all(guest.disconnected == "" for guest in guests)
    for guest in guests:
        guest.close()


@fault("SIGHUP, `balloonctl reload`, `systemctl reload`")
def test_reloaded_service_applies_a_file_or_fails_and_goes_on_by_the_one_before(
    host: ServiceHost,
) -> None:
    host.begin()
    file = host.path("etc/balloond/balloond.toml")
    web = attached(host, "web")
    host.low_mem.set_low()
    run([web], lambda: web.driver.actual * PAGE_SIZE == MAXIMUM)
    before = host.main_pid()

    def reload() -> tuple[int, str]:
        with host.running("systemctl", "reload", "balloond") as done:
            run([web], lambda: done.poll() is not None)
            assert done.stderr is not None
            return done.returncode, done.stderr.read()

    file.write_text(FILE.replace("[vm.db]", 'ceiling = "64M"\n[vm.db]'))
    assert reload() == (0, "")
    run([web], lambda: web.driver.actual * PAGE_SIZE == 64 * MIB)
    changed = "the configuration is read anew: [vm.web] ceiling: default -> 64 MiB"
    assert changed in host.said_by(before)
    assert host.errors() == []

    file.write_text(FILE.replace("[vm.db]", 'flor = "1G"\n[vm.db]'))
    assert reload()[0] != 0
    mistake = (
        '/etc/balloond/balloond.toml:3: [vm.web] flor = "1G": there is no such key; did you mean '
        "floor?"
    )
    said = [line.text for line in host.journal()]
    assert mistake in said
    assert f"balloonctl: {mistake}" in said
    file.write_text(FILE)
    host.run("systemctl", "kill", "--kill-who=main", "--signal=HUP", "balloond")
    run([web], lambda: web.driver.actual * PAGE_SIZE == MAXIMUM)

    assert (host.unit("ActiveState"), host.main_pid()) == ("active", before)
    assert web.disconnected == ""
    web.close()


@fault("`systemctl restart` with a mistake")
def test_vm_outlives_a_mistake_in_the_file_until_it_is_mended(host: ServiceHost) -> None:
    file = host.path("etc/balloond/balloond.toml")
    guest = attached(host, "web")
    host.low_mem.set_low()
    run([guest], lambda: guest.driver.actual * PAGE_SIZE == MAXIMUM)

    file.write_text("[vm.web]\nqpm = '/run/web.qmp'\n")
    with host.running("systemctl", "restart", "balloond") as restart:
        run([guest], lambda: restart.poll() is not None)
        assert restart.returncode != 0
    run([guest], lambda: host.unit("NRestarts") == "1")
    said = [line.text for line in host.journal()]
    file.write_text(FILE)
    run([guest], lambda: host.unit("ActiveState") == "active")

    # Without this wait systemd would try 30 times in 6 s, and then close the VM's socket.
    assert any("which is tried each 5 s" in line for line in said)
    goes_on = host.said_by(host.main_pid())
    assert any(line.startswith("web: goes on where another") for line in goes_on)
    assert guest.disconnected == ""
    assert guest.driver.actual * PAGE_SIZE == MAXIMUM
    guest.close()


@fault("mistake in the configuration file")
def test_service_does_not_start_with_a_mistake_in_its_file_and_says_which(
    host: ServiceHost,
) -> None:
    host.run("systemctl", "stop", "balloond")
    host.begin()
    host.path("etc/balloond/balloond.toml").write_text("[vm.web]\nqpm = '/run/web.qmp'\n")

    host.run("systemctl", "start", "balloond", check=False)
    wait_until(lambda: host.unit("ActiveState") == "failed", what="systemd has given up")

    said = [line.text for line in host.journal() if line.text.startswith("balloond: ")]
    assert set(said) == {
        'balloond: /etc/balloond/balloond.toml:2: [vm.web] qpm = "/run/web.qmp": there is no such '
        "key; did you mean qmp?",
        # The VM that the drop-in gives a limit was named by the file before.
        "balloond: /etc/balloond/balloond.d/10-db.toml:1: [vm.db]: nothing says how to reach it; "
        "add one of vhost_user, qmp, libvirt, cloud_hypervisor, firecracker, crosvm",
    }
