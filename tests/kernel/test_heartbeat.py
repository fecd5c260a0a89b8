"""Under a service manager with a watchdog: what it is told, and what a beat replaces."""

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from balloon_daemon.fake_guest.machine import run
from balloon_daemon.linux.systemd import take_watchdog_s
from tests.harness.daemon import Daemon
from tests.harness.faults import fault
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.makers import MAXIMUM, SETTINGS, MakeGuest, StartDaemon
from tests.harness.service_manager import ServiceManager
from tests.harness.waiting import wait_until
from tests.harness.whole_vm import balloon_bytes, facts

EVERY_US = 200_000
"""The watchdog's time: the shipped unit's is a minute, for which no test waits."""


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Iterator[ServiceManager]:
    """A service manager with a watchdog."""
    # Not in the test's own directory: a socket's path has 107 bytes at most.
    with tempfile.TemporaryDirectory() as folder:
        manager = ServiceManager(Path(folder, "notify"), capacity=0)
        monkeypatch.setenv("NOTIFY_SOCKET", str(manager.path))
        monkeypatch.setenv("WATCHDOG_USEC", str(EVERY_US))
        yield manager
        manager.close()


def beats(manager: ServiceManager) -> list[str]:
    return [said for said in manager.said if said.startswith("WATCHDOG=1")]


def statuses(manager: ServiceManager) -> list[str]:
    return [said.partition("\nSTATUS=")[2] for said in beats(manager) if "\nSTATUS=" in said]


def template_pid(daemon: Daemon) -> int:
    """The template's process id; 0 where there is none that can fork."""
    children = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()
    names = {int(pid): Path(f"/proc/{pid}/comm").read_text().strip() for pid in children}
    return next((pid for pid, name in names.items() if name.startswith("balloond-fork")), 0)


def test_manager_hears_a_beat_twice_in_a_watchdog_time_and_a_status_where_it_changes(
    manager: ServiceManager,
    start_daemon: StartDaemon,
    make_guest: MakeGuest,
    low_mem: LowMemDir,
) -> None:
    daemon = start_daemon()
    wait_until(lambda: len(beats(manager)) >= 4, what="the manager hears beats")
    assert len(statuses(manager)) == 1
    assert statuses(manager)[0].startswith("0 VMs, balloons 0 B; ")

    guest = make_guest(SETTINGS)
    guest.connect(str(daemon.config.socket))
    guest.bind()
    low_mem.set_low()
    run([guest], lambda: balloon_bytes(guest) == MAXIMUM)
    run([guest], lambda: statuses(manager)[-1].startswith("1 VM, balloons 256 MiB; "))
    assert statuses(manager)[-1].endswith(", low")


def test_daemon_without_a_watchdog_sends_no_beat(
    manager: ServiceManager, start_daemon: StartDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WATCHDOG_USEC")
    daemon = start_daemon()
    daemon.wait(lambda: any("READY=1" in said for said in manager.said), what="it is up")
    daemon.stop()

    assert beats(manager) == []


@fault("template (forks the devices) killed")
def test_template_that_is_killed_while_no_device_is_wanted_is_replaced_at_the_next_beat(
    manager: ServiceManager, start_daemon: StartDaemon, make_guest: MakeGuest
) -> None:
    daemon = start_daemon()
    guest = make_guest(SETTINGS)
    guest.connect(str(daemon.config.socket))
    guest.bind()
    run([guest], lambda: facts(daemon, "device-ready") != [] or template_pid(daemon) != 0)
    run([guest], lambda: facts(daemon, "device-started") != [])
    killed = template_pid(daemon)

    os.kill(killed, signal.SIGKILL)

    wait_until(lambda: facts(daemon, "template-started") != [], what="another forks devices")
    assert template_pid(daemon) not in (0, killed)
    assert len(facts(daemon, "device-started")) == 1
    wait_until(
        lambda: "last trouble" in statuses(manager)[-1], what="the status names the trouble"
    )


@pytest.mark.parametrize(
    ("told", "pid", "seconds"),
    [
        ("60000000", None, 60.0),
        ("60000000", "own", 60.0),
        ("60000000", "1", None),
        ("0", None, None),
        ("soon", None, None),
        ("\u0667", None, None),
    ],
)
def test_watchdog_is_taken_where_it_means_this_process_and_is_no_childs(
    told: str, pid: str | None, seconds: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", told)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    if pid is not None:
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "own" else pid)

    assert take_watchdog_s() == seconds
    assert "WATCHDOG_USEC" not in os.environ
