"""A real balloond and real fake guests for the tests of this folder."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from balloon_daemon.fake_guest.machine import FakeGuest, GuestSettings
from tests.vm.daemon import Daemon, DaemonConfig
from tests.vm.low_mem_dir import LowMemDir

VM_MEM_MIB = 512
MARGIN_MIB = 100
SPEED = 20.0

StartDaemon = Callable[..., Daemon]
MakeGuest = Callable[..., FakeGuest]


@pytest.fixture
def low_mem(tmp_path: Path) -> LowMemDir:
    return LowMemDir(tmp_path / "low-mem", margin_mib=MARGIN_MIB)


@pytest.fixture
def start_daemon(tmp_path: Path, low_mem: LowMemDir) -> Iterator[StartDaemon]:
    """Starts daemons with further options; what still runs at the end is killed."""
    daemons: list[Daemon] = []

    def start(*options: str, name: str = "balloond") -> Daemon:
        config = DaemonConfig(tmp_path / f"{name}.sock", VM_MEM_MIB, low_mem, SPEED, options)
        daemons.append(Daemon(config, tmp_path / name))
        return daemons[-1]

    yield start
    for daemon in daemons:
        daemon.kill()


@pytest.fixture
def daemon(start_daemon: StartDaemon) -> Daemon:
    return start_daemon()


@pytest.fixture
def make_guest() -> Iterator[MakeGuest]:
    """Makes guests of 512 MiB; all are closed at the end."""
    guests: list[FakeGuest] = []

    def make(settings: GuestSettings | None = None) -> FakeGuest:
        guests.append(FakeGuest(settings or GuestSettings(mem_bytes=VM_MEM_MIB << 20)))
        return guests[-1]

    yield make
    for guest in guests:
        guest.close()
