"""balloond.socket and balloond-api.socket under a real systemd: owners, activation, restart."""

from collections.abc import Iterator

import pytest

from balloon_daemon.fake_guest.machine import FakeGuest, GuestSettings, run
from balloon_daemon.fake_guest.pages import Population
from balloon_daemon.units import MIB, PAGE_SIZE
from tests.harness.api_client import ask
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
UNITS = ("balloond.socket", "balloond-api.socket")
OWN = "[Socket]\nSocketUser=nobody\nSocketGroup=users\nSocketMode=0660\n"


@pytest.fixture(scope="module")
def host() -> Iterator[ServiceHost]:
    """The machine, booted, with both socket units started, and balloond not."""
    host = ServiceHost(ready_root(), SESSION_LOGS / "service-sockets")
    try:
        host.begin()
        host.configure(
            *("--speed", "20", "--user", "balloond", "--history", "/var/lib/balloond/history.db")
        )
        directory = host.path("run/systemd/system/balloond.socket.d")
        directory.mkdir(parents=True)
        (directory / "own.conf").write_text(OWN)
        host.run("systemctl", "daemon-reload")
        host.run("systemctl", "start", *UNITS)
        yield host
    finally:
        host.stop()


def balloon_bytes(guest: FakeGuest) -> int:
    return guest.driver.actual * PAGE_SIZE


def owner(host: ServiceHost, name: str) -> tuple[str, str, int]:
    """The user, the group and the mode of a socket's file, by the machine's own names."""

    def named(file: str, number: int) -> str:
        lines = [line.split(":") for line in host.path(file).read_text().splitlines()]
        (found,) = [words[0] for words in lines if words[2] == str(number)]
        return found

    found = host.path(f"run/balloond/{name}").stat()
    user, group = named("etc/passwd", found.st_uid), named("etc/group", found.st_gid)
    return user, group, found.st_mode & 0o777


@fault("`systemctl restart`, SIGUSR1")
def test_vm_that_connects_starts_the_service_which_is_restarted_and_stopped_around_its_sockets(
    host: ServiceHost,
) -> None:
    owners = [owner(host, name) for name in ("balloond.sock", "api.sock")]
    assert owners == [("nobody", "users", 0o660), ("root", "balloond", 0o660)]
    assert host.unit("ActiveState") == "inactive"
    guest = FakeGuest(SETTINGS)
    host.low_mem.set_low()
    guest.connect(str(host.socket))
    guest.bind()
    run([guest], lambda: balloon_bytes(guest) == MAXIMUM, HANG_S)
    first = host.main_pid()
    (vm,) = ask(host.socket.with_name("api.sock"), "/v1/status").content["vms"]
    assert vm["target_bytes"] == MAXIMUM

    with host.running("systemctl", "restart", "balloond") as restart:
        run([guest], lambda: restart.poll() is not None, HANG_S)
    run([guest], lambda: host.main_pid() not in (0, first), HANG_S)
    assert ask(host.socket.with_name("api.sock"), "/v1/status").status == 200
    assert any("goes on where another" in line for line in host.said_by(host.main_pid()))
    assert guest.disconnected == ""
    assert guest.driver.counters.deflate_buffers == 0
    assert host.errors() == []

    with host.running("systemctl", "stop", "balloond") as stop:
        run([guest], lambda: stop.poll() is not None, HANG_S)
    assert guest.ram.check().pages_corrupt == 0
    guest.close()
    assert [owner(host, name) for name in ("balloond.sock", "api.sock")] == owners
    # Whoever asks starts the service again.
    assert host.run("balloonctl", "status") != ""
    wait_until(lambda: host.unit("ActiveState") == "active", what="it is active again")


def test_history_is_kept_in_the_state_directory_and_nothing_is_swapped(host: ServiceHost) -> None:
    host.run("systemctl", "start", "balloond")
    history = host.path("var/lib/balloond/history.db")
    wait_until(history.exists, what="the history is there")

    assert history.parent.stat().st_mode & 0o777 == 0o700
    root = host.path(f"proc/{host.main_pid()}/root")
    assert [path.name for path in (root / "var/lib").iterdir()] == ["balloond"]
    assert host.unit("MemorySwapMax") == "0"
