"""A real balloond, real devices and real fake guests for the tests of this folder."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from balloon_daemon.device.template import Template
from balloon_daemon.fake_guest.machine import FakeGuest, GuestSettings
from balloon_daemon.handover.keeper_start import keeper_path
from tests.harness.daemon import Daemon, DaemonConfig
from tests.harness.device_rig import DeviceRig, shipped_filter
from tests.harness.fd_keeper import end_keeper
from tests.harness.host_setting import changed
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.makers import MARGIN_MIB, SPEED, VM_MEM_MIB, MakeGuest, MakeRig, StartDaemon

PRINTK_RATELIMIT = Path("/proc/sys/kernel/printk_ratelimit")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a VMM that a test plays listens."""
    return tmp_path / "vmm.sock"


@pytest.fixture
def low_mem(tmp_path: Path) -> LowMemDir:
    return LowMemDir(tmp_path / "low-mem", margin_mib=MARGIN_MIB)


@pytest.fixture
def start_daemon(tmp_path: Path, low_mem: LowMemDir) -> Iterator[StartDaemon]:
    """Starts daemons with further options; what still runs at the end is killed."""
    daemons: list[Daemon] = []

    def start(
        *options: str,
        name: str = "balloond",
        launcher: tuple[str, ...] = (),
        vm_mem_mib: int | None = VM_MEM_MIB,
    ) -> Daemon:
        config = DaemonConfig(tmp_path / f"{name}.sock", vm_mem_mib, low_mem, SPEED, options)
        daemons.append(Daemon(config, tmp_path / name, launcher))
        return daemons[-1]

    yield start
    for daemon in daemons:
        daemon.kill()
        end_keeper(keeper_path(daemon.config.socket))


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


@pytest.fixture
def make_rig() -> Iterator[MakeRig]:
    """Makes rigs as ``DeviceRig`` does; all are closed at the end, with their devices."""
    with contextlib.ExitStack() as rigs:

        def make(*args: object, **kwargs: object) -> DeviceRig:
            rig = DeviceRig(*args, **kwargs)  # type: ignore[arg-type] # DeviceRig's own
            rigs.callback(rig.close)
            return rig

        yield make


@pytest.fixture
def rig(make_rig: MakeRig) -> DeviceRig:
    return make_rig()


@pytest.fixture
def template() -> Iterator[Template]:
    """A process that forks devices, as the controller has one."""
    started = Template()
    started.wait_until_ready()
    started.prepare(shipped_filter().bpf, lambda what: None, lambda what: None)
    yield started
    started.close()


@pytest.fixture
def kernel_log_is_complete() -> Iterator[bool]:
    """Lifts the rate limit of the kernel's log, which other tests' kills may have reached.

    Only root may, and only where the log may be read does balloond know the call's name.
    """
    with contextlib.ExitStack() as stack:
        try:
            os.close(os.open("/dev/kmsg", os.O_RDONLY | os.O_CLOEXEC))
            stack.enter_context(changed(PRINTK_RATELIMIT, lambda before: "0"))
        except OSError:
            yield False
        else:
            yield True
