"""Odd ways to use a device that have always worked, and must go on working."""

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from balloon_daemon.fake_guest.frontend import FakeFrontend
from balloon_daemon.fake_guest.machine import FakeGuest, GuestSettings
from balloon_daemon.fake_guest.pages import Population
from balloon_daemon.fake_guest.ring import DriverQueue, ring_bytes
from balloon_daemon.fake_guest.settings import DriverSettings
from balloon_daemon.fake_guest.styles import CROSVM, QEMU, STYLES, Style
from balloon_daemon.units import MIB
from balloon_daemon.vhost_user.messages import FrontendRequest, VringState, decode_vring_state
from balloon_daemon.virtio.balloon import BalloonFeature
from tests.harness.daemon import Daemon
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.makers import MAXIMUM, VM_MEM_MIB, MakeGuest, StartDaemon
from tests.harness.whole_vm import LOST, OF_VMM, balloon_bytes, errors, run_until, said

Q = FrontendRequest
FAST = "300"
"""A balloon that is to go again takes 9 minutes by ChromeOS's rule."""

SETTINGS = GuestSettings(
    VM_MEM_MIB * MIB, population=Population(touched_bytes=32 * MIB, pinned_bytes=16 * MIB)
)


def start_vm(guest: FakeGuest, daemon: Daemon) -> FakeFrontend:
    guest.connect(str(daemon.config.socket))
    guest.bind()
    assert guest.frontend is not None
    return guest.frontend


def comes_and_goes(guest: FakeGuest, low_mem: LowMemDir) -> None:
    """The whole balloon and nothing again, and no other page is lost."""
    low_mem.set_low()
    run_until([guest], lambda: balloon_bytes(guest) == MAXIMUM)
    low_mem.set_plenty()
    run_until([guest], lambda: balloon_bytes(guest) == 0)
    assert guest.ram.check().pages_corrupt == 0


# --- transports and drivers of long ago -------------------------------------------------------


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0)], ids=["ascending", "descending"])
def test_actual_that_is_written_byte_by_byte_is_read_back_as_written(
    order: tuple[int, ...], daemon: Daemon, make_guest: MakeGuest
) -> None:
    # A legacy virtio-mmio transport.
    frontend = start_vm(make_guest(replace(SETTINGS, style=CROSVM)), daemon)
    content = (0x12345).to_bytes(4, "little")

    for place in order:
        frontend.write_config(4 + place, content[place : place + 1])

    assert b"".join(frontend.read_config(4 + place, 1) for place in range(4)) == content
    assert frontend.read_config(4, 4) == content


@pytest.mark.parametrize("style", STYLES.values(), ids=lambda style: style.name)
def test_legacy_driver_without_any_feature_gives_and_takes(
    style: Style, start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    # NetBSD's: two queues, nothing acknowledged.
    daemon = start_daemon("--speed", FAST)
    driver = DriverSettings(features=0)
    guest = make_guest(replace(SETTINGS, style=style, num_vqs=2, driver=driver))
    start_vm(guest, daemon)

    comes_and_goes(guest, low_mem)
    assert said(daemon, *OF_VMM, "guest-fault", *LOST) == []


def test_driver_that_polls_and_never_wants_a_call_gives_and_takes(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    daemon = start_daemon("--speed", FAST)
    driver = DriverSettings(features=int(BalloonFeature.VERSION_1), interrupts=False)
    guest = make_guest(replace(SETTINGS, num_vqs=2, driver=driver))
    start_vm(guest, daemon)

    comes_and_goes(guest, low_mem)


@pytest.mark.parametrize("size", [1, 2, 16, 1024])
def test_driver_with_rings_of_any_size_gives_and_takes(
    size: int, start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    daemon = start_daemon("--speed", FAST)
    guest = make_guest(replace(SETTINGS, driver=DriverSettings(queue_size=size)))
    start_vm(guest, daemon)

    comes_and_goes(guest, low_mem)


# --- firmware before the operating system -----------------------------------------------------


@pytest.mark.parametrize("stops_by", ["reset-owner", "get-vring-base", "both"])
def test_firmware_that_had_the_device_before_leaves_it_to_the_operating_system(
    stops_by: str, daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    guest = make_guest(SETTINGS)
    guest.connect(str(daemon.config.socket))
    frontend, ram = guest.frontend, guest.ram
    assert frontend is not None
    small = [
        DriverQueue(index, 16, ram.memory, guest.driver.rings.area + index * ring_bytes(16))
        for index in range(2)
    ]
    frontend.start(int(BalloonFeature.VERSION_1), ram.shared(), [queue.ring for queue in small])
    low_mem.set_low()
    run_until([guest], lambda: daemon.target_bytes() > 0)

    # It gives nothing of what it is asked for.
    if stops_by != "reset-owner":
        frontend.stop()
    if stops_by != "get-vring-base":
        frontend.requests.tell(Q.RESET_OWNER)
        frontend.requests.tell(Q.SET_OWNER)
    guest.bind()
    run_until([guest], lambda: balloon_bytes(guest) == MAXIMUM)

    assert (errors(daemon), guest.ram.check().pages_corrupt) == ([], 0)


# --- where a vring stands ---------------------------------------------------------------------


def base_of(frontend: FakeFrontend, index: int) -> int:
    reply = frontend.requests.ask(Q.GET_VRING_BASE, VringState(index, 0).encode())
    return decode_vring_state(reply).num


def test_where_a_vring_stands_is_the_same_whenever_it_is_asked(
    daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    guest = make_guest(SETTINGS)
    frontend = start_vm(guest, daemon)
    low_mem.set_low()
    run_until([guest], lambda: balloon_bytes(guest) == MAXIMUM and guest.driver.idle)
    used = guest.driver.counters.inflate_buffers

    bases = [base_of(frontend, 0), base_of(frontend, 0)]
    # Enabled without a new kick: it stands still all the same.
    for enabled in (0, 1):
        frontend.requests.tell(Q.SET_VRING_ENABLE, VringState(0, enabled).encode())
    bases.append(base_of(frontend, 0))

    assert bases == [used & 0xFFFF] * 3
    assert base_of(frontend, 1) == guest.driver.counters.deflate_buffers


def test_vrings_that_were_asked_for_go_on_when_they_are_started_anew(
    daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    guest = make_guest(SETTINGS)
    frontend = start_vm(guest, daemon)
    low_mem.set_low()
    run_until([guest], lambda: balloon_bytes(guest) > 0)
    base_of(frontend, 1)
    base_of(frontend, 0)

    guest.pause()
    guest.resume()
    run_until([guest], lambda: balloon_bytes(guest) == MAXIMUM)

    assert guest.ram.check().pages_corrupt == 0


# --- a VMM that hangs up at each reboot -------------------------------------------------------


@pytest.mark.parametrize("style", [QEMU, CROSVM], ids=lambda style: style.name)
def test_vmm_that_connects_anew_at_each_reboot_has_its_balloon_each_time(
    style: Style, daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    # Cloud Hypervisor's way; its guest's driver begins anew.
    guest = make_guest(replace(SETTINGS, style=style))
    start_vm(guest, daemon)
    low_mem.set_low()
    run_until([guest], lambda: balloon_bytes(guest) == MAXIMUM)

    for _ in range(3):
        start_vm(guest, daemon)
        run_until([guest], lambda: balloon_bytes(guest) == MAXIMUM)

    assert {r["vm"] for r in daemon.records() if "vm" in r} == {"vm1", "vm2", "vm3", "vm4"}
    assert [r for r in daemon.records() if r["event"] == "balloon-sought"] == []
    assert errors(daemon) == []


# --- process 1 of a container -----------------------------------------------------------------


def read_proc(pid: int, name: str) -> str:
    """A file of /proc/PID; "" once the process is gone."""
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def children(pid: int) -> Iterator[int]:
    for child in map(int, read_proc(pid, f"task/{pid}/children").split()):
        yield child
        yield from children(child)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for a PID namespace with its own /proc")
def test_process_1_of_a_container_replaces_devices_reaps_all_and_ends_when_told(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    container = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
    daemon = start_daemon("--speed", FAST, launcher=container)
    guest = make_guest(SETTINGS)
    start_vm(guest, daemon)
    low_mem.set_low()
    run_until([guest], lambda: balloon_bytes(guest) == MAXIMUM)
    first = next(children(daemon.pid))

    def devices() -> list[int]:
        return [pid for pid in children(first) if read_proc(pid, "comm") == "balloon-vm1\n"]

    for death in range(1, 5):
        run_until([guest], lambda: len(devices()) == 1)
        os.kill(devices()[0], signal.SIGKILL)
        run_until(
            [guest],
            lambda death=death: (  # type: ignore[misc]  # bound per turn
                len([r for r in daemon.records() if "exit_code" in r]) == death
            ),
        )
    low_mem.set_plenty()
    run_until([guest], lambda: balloon_bytes(guest) == 0)

    def zombies() -> list[int]:
        return [p for p in children(first) if ") Z " in read_proc(p, "stat")]

    run_until([guest], lambda: zombies() == [])
    os.kill(first, signal.SIGTERM)
    run_until([guest], lambda: bool(guest.disconnected))
    assert daemon._process.wait(60) == 0
