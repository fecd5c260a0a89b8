"""Under a service manager: a store where it stores something, and nowhere else."""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from balloon_daemon.fake_guest.machine import run
from balloon_daemon.handover.keeper_start import keeper_path
from balloon_daemon.handover.room import SHARE, STATES
from balloon_daemon.handover.store import NoStore, SocketStore
from balloon_daemon.handover.systemd_store import systemd_store
from balloon_daemon.linux import systemd
from balloon_daemon.linux.systemd import FDSTORE_MAX, connect_manager, store_capacity
from tests.harness.daemon import DaemonError
from tests.harness.faults import fault
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.makers import SETTINGS, MakeGuest, StartDaemon
from tests.harness.service_manager import ServiceManager
from tests.harness.waiting import wait_until
from tests.harness.whole_vm import facts

MakeManager = Callable[[int], ServiceManager]


@pytest.fixture
def make_manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeManager]:
    """Makes the service manager of this process and of what it starts."""
    managers: list[ServiceManager] = []
    monkeypatch.delenv("FDSTORE", raising=False)

    def make(capacity: int) -> ServiceManager:
        managers.append(ServiceManager(tmp_path / "notify", capacity))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        return managers[-1]

    yield make
    for manager in managers:
        manager.close()


def test_store_of_a_manager_that_tells_its_room_has_that_room(
    make_manager: MakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = make_manager(7)
    monkeypatch.setenv("FDSTORE", "7")

    store = systemd_store()

    assert isinstance(store, SocketStore)
    assert (store.keeps, store.room.capacity) == (True, 7)
    assert "FDSTORE" not in os.environ
    assert manager.said == []
    store.close()


def test_manager_that_stores_without_telling_its_room_is_found_out(
    make_manager: MakeManager,
) -> None:
    # systemd before version 254 sets no $FDSTORE.
    manager = make_manager(FDSTORE_MAX)

    store = systemd_store()

    assert (store.keeps, store.room.capacity) == (True, FDSTORE_MAX)
    wait_until(lambda: len(manager.said) == 3, what="the manager is told all")
    assert manager.names == set()
    store.close()


def test_manager_that_stores_nothing_has_no_store(make_manager: MakeManager) -> None:
    make_manager(0)

    store = systemd_store()

    assert isinstance(store, NoStore)
    assert not store.keeps


@pytest.mark.parametrize("told", ["0", "", "many", "\u0667"])
def test_manager_that_tells_no_room_has_no_store(
    make_manager: MakeManager, monkeypatch: pytest.MonkeyPatch, told: str
) -> None:
    make_manager(0)
    monkeypatch.setenv("FDSTORE", told)

    assert not systemd_store().keeps


def test_manager_that_has_stored_something_is_not_tried(make_manager: MakeManager) -> None:
    manager = make_manager(0)
    sock = connect_manager()
    assert sock is not None

    with sock:
        assert store_capacity(sock, has_stored=True) == FDSTORE_MAX

    assert manager.said == []


def test_manager_that_takes_nothing_has_no_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systemd, "STORE_TRIED_WITHIN_S", 0.05)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as silent:
        silent.bind(str(tmp_path / "notify"))
        assert not systemd_store().keeps


def test_service_without_a_store_gives_all_back_on_sigusr1(
    make_manager: MakeManager,
    start_daemon: StartDaemon,
    low_mem: LowMemDir,
    make_guest: MakeGuest,
) -> None:
    make_manager(0)
    daemon = start_daemon()
    guest = make_guest(SETTINGS)
    guest.connect(str(daemon.config.socket))
    guest.bind()
    low_mem.set_low()
    run([guest], lambda: guest.driver.actual > 0)

    os.kill(daemon.pid, signal.SIGUSR1)
    run([guest], lambda: guest.disconnected != "")
    daemon.wait_end()

    assert guest.driver.actual == 0
    assert [record["vms_stay"] for record in facts(daemon, "stopping")] == [False]


@fault("`systemctl restart`, SIGUSR1")
def test_vm_for_which_the_store_has_no_room_gets_its_memory_back_on_sigusr1(
    make_manager: MakeManager,
    start_daemon: StartDaemon,
    low_mem: LowMemDir,
    make_guest: MakeGuest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its connection ends with this balloond: nobody could give the memory back later."""
    capacity = 2 * SHARE  # Less than two VMs are promised, and the listening socket.
    manager = make_manager(capacity)
    monkeypatch.setenv("FDSTORE", str(capacity))
    daemon = start_daemon()
    kept, other = guests = [make_guest(SETTINGS), make_guest(SETTINGS)]
    for guest in guests:
        guest.connect(str(daemon.config.socket))
        guest.bind()
    low_mem.set_low()
    run(guests, lambda: all(guest.driver.actual > 0 for guest in guests))

    os.kill(daemon.pid, signal.SIGUSR1)
    # Without the one that is kept: it would wait for the next balloond's answers.
    run([other], lambda: other.disconnected != "")
    with pytest.raises(DaemonError, match=r"vm2.*is not kept for a later balloond"):
        daemon.wait_end()

    assert other.driver.actual == 0
    assert (kept.driver.actual > 0, kept.disconnected) == (True, "")
    assert any(name.startswith("vm1.state-") for name in manager.names)


def test_service_without_a_store_has_a_keeper_where_one_is_wanted(
    make_manager: MakeManager, start_daemon: StartDaemon, make_guest: MakeGuest
) -> None:
    make_manager(0)
    daemon = start_daemon("--keep-fds")
    guest = make_guest(SETTINGS)
    guest.connect(str(daemon.config.socket))

    os.kill(daemon.pid, signal.SIGUSR1)
    daemon.wait_end()

    assert keeper_path(daemon.config.socket).exists()
    assert [record["vms_stay"] for record in facts(daemon, "stopping")] == [True]


def test_service_with_a_store_keeps_its_vms_without_loading_libcrypto(
    make_manager: MakeManager,
    start_daemon: StartDaemon,
    low_mem: LowMemDir,
    make_guest: MakeGuest,
) -> None:
    manager = make_manager(FDSTORE_MAX)
    daemon = start_daemon()
    guest = make_guest(SETTINGS)
    guest.connect(str(daemon.config.socket))
    guest.bind()
    low_mem.set_low()
    run([guest], lambda: guest.driver.actual > 0)

    # 3.6 MiB in every service; hashlib loads it, and so does ssl.
    loaded = Path(f"/proc/{daemon.pid}/maps").read_text()
    assert not [word for word in ("libcrypto", "_hashlib", "_ssl") if word in loaded]
    states = {name for name in manager.names if name.startswith("vm1.state-")}
    assert 0 < len(states) <= STATES

    os.kill(daemon.pid, signal.SIGUSR1)
    daemon.wait_end()
    assert "listener" in manager.names
    assert any(name.startswith("vm1.state-") for name in manager.names)
