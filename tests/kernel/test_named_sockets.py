"""VMs on our own device that a configuration file names: each has a socket of its own."""

import contextlib
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from balloon_daemon.fake_guest.machine import FakeGuest, run
from balloon_daemon.fake_guest.wire import Wire
from balloon_daemon.guests.jailed.listening import kept_listener, listen
from balloon_daemon.handover.store import NoStore
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.units import MIB
from tests.harness.daemon import Daemon
from tests.harness.faults import fault
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.makers import MAXIMUM, SETTINGS, VM_MEM_MIB, MakeGuest, StartDaemon
from tests.harness.whole_vm import attach, balloon_bytes, errors, facts


class Named:
    """A configuration file with a socket for each VM."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "balloond.toml"
        self._folder = folder

    def socket(self, name: str) -> Path:
        return self._folder / f"{name}.sock"

    def write(self, **settings: str) -> tuple[str, ...]:
        """Names VMs, each with further lines of its table. Returns balloond's options."""
        tables = [
            f'[vm.{name}]\nvhost_user = "{self.socket(name)}"\n{more}\n'
            for name, more in settings.items()
        ]
        self.file.write_text("".join(tables))
        return ("--config", str(self.file))


@pytest.fixture
def named(tmp_path: Path) -> Named:
    return Named(tmp_path)


def attach_to(path: Path, guest: FakeGuest) -> FakeGuest:
    guest.connect(str(path))
    guest.bind()
    return guest


def sizes(daemon: Daemon) -> dict[str, int]:
    """Each attached VM's size in MiB, by its name."""
    return {r["vm"]: r["vm_mem_bytes"] // MIB for r in facts(daemon, "vm-attached")}


def is_hung_up_on(path: Path) -> bool:
    """Whether a VMM that connects there is hung up on, before it has said anything."""
    with socket.socket(socket.AF_UNIX) as vmm:
        vmm.settimeout(60)
        vmm.connect(str(path))
        return vmm.recv(1) == b""


def test_vm_has_the_name_and_the_size_of_its_socket(
    start_daemon: StartDaemon, make_guest: MakeGuest, named: Named
) -> None:
    options = named.write(web='memory = "256M"', db="")
    daemon = start_daemon(*options, vm_mem_mib=128)
    guests = [attach_to(named.socket(name), make_guest()) for name in ("web", "db")]
    guests.append(attach(make_guest(), daemon))

    run(guests, lambda: len(sizes(daemon)) == 3)

    assert sizes(daemon) == {"web": 256, "db": VM_MEM_MIB, "vm3": 128}
    assert errors(daemon) == []


@fault("a second VMM connects")
def test_second_connection_to_a_vms_socket_is_refused_with_a_line(
    start_daemon: StartDaemon, make_guest: MakeGuest, named: Named
) -> None:
    daemon = start_daemon(*named.write(web="", db=""))
    guest = attach_to(named.socket("web"), make_guest())
    run([guest], lambda: "web" in sizes(daemon))

    for _ in range(3):
        assert is_hung_up_on(named.socket("web"))
    other = attach_to(named.socket("db"), make_guest())
    run([guest, other], lambda: "db" in sizes(daemon))

    # Where the machine is slow there is another line a second later, with the number left out.
    assert {error.partition(" (")[0] for error in errors(daemon)} == {
        f"a connection of user {os.geteuid()} is refused, as the VM is connected already: give "
        "each VM a socket of its own"
    }
    assert guest.disconnected == ""


@fault("a second VMM connects")
def test_vm_that_is_started_again_at_once_is_not_refused(
    start_daemon: StartDaemon, make_guest: MakeGuest, named: Named
) -> None:
    daemon = start_daemon(*named.write(web=""))
    for times in range(1, 6):
        guest = attach_to(named.socket("web"), make_guest())
        run([guest], lambda times=times: len(facts(daemon, "vm-attached")) == times)  # type: ignore[misc]  # bound per turn
        guest.hang_up()

    assert errors(daemon) == []
    assert {record["vm"] for record in facts(daemon, "vm-attached")} == {"web"}


def make_way(daemon: Daemon) -> None:
    os.kill(daemon.pid, signal.SIGUSR1)
    daemon.wait_end()


@fault("controller killed, with a store")
@pytest.mark.parametrize("end", [make_way, Daemon.kill])
def test_next_controller_goes_on_with_every_vm_by_its_name(
    end: Callable[[Daemon], None],
    start_daemon: StartDaemon,
    low_mem: LowMemDir,
    make_guest: MakeGuest,
    named: Named,
) -> None:
    options = ("--keep-fds", *named.write(web="", db=""))
    first = start_daemon(*options)
    guests = [attach_to(named.socket(name), make_guest(SETTINGS)) for name in ("web", "db")]
    guests.append(attach(make_guest(SETTINGS), first))
    low_mem.set_low()
    run(guests, lambda: all(guest.driver.actual > 0 for guest in guests))

    end(first)
    second = start_daemon(*options)
    run(guests, lambda: all(balloon_bytes(guest) == MAXIMUM for guest in guests))

    assert {record["vm"] for record in facts(second, "taken-over")} == {"web", "db", "vm3"}
    assert is_hung_up_on(named.socket("web"))
    assert all(guest.disconnected == "" for guest in guests)
    assert all(guest.ram.check().pages_corrupt == 0 for guest in guests)


@fault("a named VM's socket is configured")
def test_vm_whose_socket_is_configured_no_more_keeps_its_balloon(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest, named: Named
) -> None:
    first = start_daemon("--keep-fds", *named.write(web="", db=""))
    guests = [attach_to(named.socket(name), make_guest(SETTINGS)) for name in ("web", "db")]
    low_mem.set_low()
    run(guests, lambda: all(guest.driver.actual > 0 for guest in guests))
    first.kill()

    second = start_daemon("--keep-fds", *named.write(db=""))
    run(guests, lambda: all(balloon_bytes(guest) == MAXIMUM for guest in guests))

    assert {record["vm"] for record in facts(second, "taken-over")} == {"web", "db"}
    with pytest.raises(ConnectionRefusedError):
        Wire.connect(str(named.socket("web")))


@fault("a named VM's socket is configured")
def test_kept_socket_is_found_by_its_path_whatever_name_it_was_kept_under(tmp_path: Path) -> None:
    path, store = tmp_path / "web.sock", NoStore()
    with contextlib.closing(listen(path)) as first:
        store.kept["listener"] = OwnedFd(os.dup(first.sock.fileno()))
        assert kept_listener(store, tmp_path / "db.sock") is None
        assert list(store.kept) == ["listener"]

        found = kept_listener(store, path)

        assert found is not None
        assert (found.kept_as, store.kept) == ("listener", {})
        with contextlib.closing(found.sock), contextlib.closing(Wire.connect(str(path))):
            found.sock.accept()[0].close()


@pytest.mark.parametrize("what", ["pipe", "replaced"])
def test_kept_socket_that_is_none_or_whose_file_is_anothers_stays_in_the_store(
    what: str, tmp_path: Path
) -> None:
    path, store = tmp_path / "web.sock", NoStore()
    with contextlib.closing(listen(path)) as first:
        fds = os.pipe() if what == "pipe" else (os.dup(first.sock.fileno()),)
        if what == "replaced":
            path.unlink()
            path.touch()
        store.kept["listener"] = OwnedFd(fds[0])

        assert kept_listener(store, path) is None

        assert list(store.kept) == ["listener"]
        store.kept["listener"].close()
        for fd in fds[1:]:
            os.close(fd)


@fault("a named VM's socket cannot")
def test_named_socket_that_cannot_be_opened_costs_that_vm_alone(
    start_daemon: StartDaemon, make_guest: MakeGuest, named: Named
) -> None:
    options = named.write(web="", db="")
    named.socket("web").write_text("mine")
    daemon = start_daemon(*options)
    guest = attach_to(named.socket("db"), make_guest())
    run([guest], lambda: "db" in sizes(daemon))

    assert errors(daemon) == [
        f"the VM web cannot attach: socket {named.socket('web')}: there is something else; name "
        "another path or remove it; then restart balloond"
    ]
    assert named.socket("web").read_text() == "mine"


def test_end_removes_every_socket(start_daemon: StartDaemon, named: Named) -> None:
    daemon = start_daemon(*named.write(web="", db=""))
    assert named.socket("web").is_socket()
    daemon.stop()
    assert not any(path.exists() for path in map(named.socket, ("web", "db")))
