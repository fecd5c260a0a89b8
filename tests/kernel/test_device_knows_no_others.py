"""What a device inherits: nothing of other VMs, of the environment, of what spares balloond."""

import ctypes
import marshal
import os
import random
import resource
import signal
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from balloon_daemon.device.process import Fork
from balloon_daemon.device.spec import DeviceSpec, RegionSpec
from balloon_daemon.device.template import Template
from balloon_daemon.fake_guest.machine import FakeGuest, run
from balloon_daemon.linux import jail
from balloon_daemon.tube.connection import DeviceEnd, open_tube
from balloon_daemon.units import PAGE_SIZE, FrontendAddr, GuestAddr
from tests.harness.daemon import Daemon
from tests.harness.device_rig import DeviceRig
from tests.harness.jail_watch import template_of
from tests.harness.makers import MakeGuest, MakeRig, StartDaemon
from tests.harness.process_memory import places_of
from tests.harness.waiting import wait_until
from tests.harness.ways_to_fork import Way, fork_by
from tests.harness.whole_vm import attach, ready_device, wait_for_device

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root reads a device's memory")
LIBC = ctypes.CDLL(None, use_errno=True)
PR_GET_DUMPABLE = 3  # linux/prctl.h
LIMITED_FIRST = (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC)


@pytest.fixture(params=Way, ids=[way.name for way in Way])
def any_fork(request: pytest.FixtureRequest, template: Template) -> Fork:
    """Each way to fork a device."""
    return fork_by(template, request.param)


@pytest.fixture
def waiting(any_fork: Fork, make_rig: MakeRig) -> Iterator[int]:
    """The process id of a device that waits for its first order, and has mapped nothing yet."""
    rig = make_rig()
    upper, lower = open_tube()
    pid = any_fork(rig.spec, lower.fileno(), 2, os.getpid())
    lower.close()
    yield pid
    upper.close()
    assert os.waitpid(pid, 0)[1] == 0


def wait_for_limits(pid: int) -> None:
    wait_until(
        lambda: all(resource.prlimit(pid, kind) == (0, 0) for kind in LIMITED_FIRST),
        what="the device has its first limits",
        seen=lambda: [resource.prlimit(pid, kind) for kind in LIMITED_FIRST],
    )


def test_device_has_limits_before_it_maps_its_guest(waiting: int) -> None:
    wait_for_limits(waiting)


def test_device_is_not_dumpable_before_it_maps_its_guest(
    rig: DeviceRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # RLIMIT_CORE is not heeded where the kernel hands cores to a program.
    def tell(end: DeviceEnd) -> bool:
        os._exit(7 + LIBC.prctl(PR_GET_DUMPABLE))

    monkeypatch.setattr(DeviceEnd, "wait_for_order", tell)
    rig.start()
    assert rig.wait_end() == 7


def test_device_does_not_inherit_the_services_place_behind_the_oom_killer(
    any_fork: Fork, template: Template, rig: DeviceRig
) -> None:
    rig.fork = any_fork
    try:
        for pid in filter(None, (os.getpid(), template.pid)):
            with open(f"/proc/{pid}/oom_score_adj", "w") as score:
                score.write("-900")
    except PermissionError:
        pytest.skip("no CAP_SYS_RESOURCE: nobody here can have a score below 0")
    try:
        device = rig.start_ready()
        assert Path(f"/proc/{device.pid}/oom_score_adj").read_text() == "0\n"
    finally:
        Path("/proc/self/oom_score_adj").write_text("0")


@pytest.mark.parametrize(("inherited", "then"), [("-900\n", "0"), ("0\n", "0\n"), ("7\n", "7\n")])
def test_device_raises_its_score_to_0_and_never_lowers_it(
    inherited: str, then: str, rig: DeviceRig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A file in the place of the kernel's, for where nobody may have a score below 0.
    score = tmp_path / "oom_score_adj"
    score.write_text(inherited)
    score.chmod(0o666)
    monkeypatch.setattr(jail, "OOM_SCORE_FILE", str(score))
    rig.start_ready()
    assert score.read_text() == then


# --- other VMs' addresses, and the environment ---------------------------------------------------


def as_memory_has_it(addr: int) -> list[bytes]:
    """The forms in which an address lies in memory: C's, CPython's and marshal's."""
    digits30 = struct.pack("<II", addr & (2**30 - 1), addr >> 30)
    digits15 = struct.pack("<4H", *(addr >> shift & 0x7FFF for shift in (0, 15, 30, 45)))
    assert digits15 in marshal.dumps(addr)
    return [struct.pack("<Q", addr), digits30, digits15]


def with_more_regions(spec: DeviceSpec, fd: int, frontend: int) -> DeviceSpec:
    """So many that the next request, which overwrites this one's bytes, leaves their end."""
    first, *_ = spec.regions
    more = (
        RegionSpec(
            GuestAddr(number << 40),
            FrontendAddr(frontend if number == 99 else number << 20),
            PAGE_SIZE,
            0,
            PAGE_SIZE,
            fd,
        )
        for number in range(1, 100)
    )
    return spec._replace(regions=(first, *more))


def places_of_addr(pid: int, addr: int) -> list[str]:
    return [place for form in as_memory_has_it(addr) for place in places_of(pid, form)]


@as_root
@pytest.mark.parametrize("way", Way)
def test_device_has_nothing_of_another_vmms_addresses(
    way: Way, template: Template, make_rig: MakeRig
) -> None:
    # Chosen now, so that no process has it that was forked before. Not a small one.
    addr = (1 << 46) + random.getrandbits(45) // PAGE_SIZE * PAGE_SIZE
    fork = fork_by(template, way)
    other, rig = make_rig(), make_rig()
    other.fork = rig.fork = fork
    rig.start_ready()
    rig.kill()
    other.spec = with_more_regions(other.spec, other.fd, addr)
    own = other.start_ready()
    device = rig.start_ready()

    assert places_of_addr(own.pid, addr) != []
    assert places_of_addr(device.pid, addr) == []


@as_root
@pytest.mark.parametrize("way", Way)
def test_device_has_nothing_of_the_environment(
    way: Way, start_daemon: StartDaemon, make_guest: MakeGuest
) -> None:
    secret = f"{random.getrandbits(64):016x}"
    daemon = start_daemon(launcher=("env", f"SOME_PASSWORD={secret}"))
    guests = [attach(make_guest(), daemon)]
    device = wait_for_device(guests, daemon, "vm1")
    if way is Way.RESTARTED:
        os.kill(template_of(daemon.pid), signal.SIGKILL)
        os.kill(device, signal.SIGKILL)
        device = wait_for_another(guests, daemon, device)

    assert secret.encode() in Path(f"/proc/{daemon.pid}/environ").read_bytes()
    assert Path(f"/proc/{device}/environ").read_bytes().strip(b"\0") == b""
    assert places_of(device, secret.encode()) == []


def wait_for_another(guests: list[FakeGuest], daemon: Daemon, killed: int) -> int:
    run(guests, lambda: ready_device(daemon, "vm1") not in (None, killed))
    return wait_for_device(guests, daemon, "vm1")
