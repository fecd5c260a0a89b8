"""A driver that begins anew reads 0 as ``actual`` from the first sign on; a paused one goes on."""

import os
import signal
from collections.abc import Callable
from dataclasses import replace

import pytest

from balloon_daemon.fake_guest.frontend import FakeFrontend
from balloon_daemon.fake_guest.machine import FakeGuest, GuestSettings
from balloon_daemon.fake_guest.pages import Population
from balloon_daemon.fake_guest.settings import DriverSettings
from balloon_daemon.fake_guest.styles import CROSVM, QEMU, QEMU_WITHOUT_SLOTS, Style
from balloon_daemon.units import MIB, FrontendAddr
from balloon_daemon.vhost_user.messages import (
    U64,
    VHOST_USER_F_PROTOCOL_FEATURES,
    FrontendRequest,
    ProtocolFeature,
    VringAddr,
    VringState,
)
from tests.harness.daemon import Daemon
from tests.harness.faults import fault
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.makers import MAXIMUM, VM_MEM_MIB, MakeGuest, StartDaemon
from tests.harness.whole_vm import balloon_bytes, errors, facts, run_until, said, wait_for_device

Q = FrontendRequest
TELLING = ProtocolFeature.STATUS | ProtocolFeature.RESET_DEVICE
"""Protocol features by which a VMM says that its guest begins anew."""

TOUCHED = Population(touched_bytes=64 * MIB, pinned_bytes=16 * MIB)
STYLES = [
    replace(style, protocol_features=style.protocol_features | TELLING) for style in (QEMU, CROSVM)
]


def settings(style: Style, features: int | None = None) -> GuestSettings:
    driver = DriverSettings() if features is None else DriverSettings(features=features)
    return GuestSettings(VM_MEM_MIB * MIB, style=style, population=TOUCHED, driver=driver)


def full_vm(daemon: Daemon, low_mem: LowMemDir, guest: FakeGuest) -> FakeFrontend:
    """Connects a guest and waits until its balloon is full."""
    guest.connect(str(daemon.config.socket))
    guest.bind()
    low_mem.set_low()
    run_until([guest], lambda: balloon_bytes(guest) == MAXIMUM)
    assert guest.frontend is not None
    return guest.frontend


def actual(frontend: FakeFrontend) -> int:
    """What a driver reads as its balloon's size, in pages."""
    return int.from_bytes(frontend.read_config(4, 4), "little")


def features_anew(guest: FakeGuest, frontend: FakeFrontend) -> None:
    acknowledged = guest.acknowledged | VHOST_USER_F_PROTOCOL_FEATURES
    frontend.requests.tell(Q.SET_FEATURES, U64.pack(acknowledged))


def address_anew(guest: FakeGuest, frontend: FakeFrontend) -> None:
    ring, place = guest._rings[0], guest.ram.regions[-1]
    descriptors, used, available = (
        FrontendAddr(address - place.guest_addr + place.frontend_addr)
        for address in (ring.descriptors, ring.used, ring.available)
    )
    frontend.requests.tell(
        Q.SET_VRING_ADDR, VringAddr(0, 0, descriptors, used, available).encode()
    )


FIRST_SIGNS: dict[str, Callable[[FakeGuest, FakeFrontend], object]] = {
    "status-0": lambda guest, frontend: frontend.requests.tell(Q.SET_STATUS, U64.pack(0)),
    "reset-device": lambda guest, frontend: frontend.requests.tell(Q.RESET_DEVICE),
    "reset-owner": lambda guest, frontend: frontend.requests.tell(Q.RESET_OWNER),
    "features": features_anew,
    "size": lambda guest, frontend: frontend.requests.tell(
        Q.SET_VRING_NUM, VringState(0, guest._rings[0].size).encode()
    ),
    "address": address_anew,
    "read-while-stopped": lambda guest, frontend: frontend.stop(),
}


@fault("begins anew (reboot, another driver) and reads `actual`")
@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
@pytest.mark.parametrize("sign", FIRST_SIGNS.values(), ids=FIRST_SIGNS)
def test_actual_reads_0_from_the_first_sign_of_a_reset_and_the_new_driver_gives_all(
    sign: Callable[[FakeGuest, FakeFrontend], object],
    style: Style,
    daemon: Daemon,
    low_mem: LowMemDir,
    make_guest: MakeGuest,
) -> None:
    guest = make_guest(settings(style))
    frontend = full_vm(daemon, low_mem, guest)
    assert actual(frontend) == MAXIMUM // 4096

    sign(guest, frontend)

    # OpenBSD's and NetBSD's drivers go on from what they read here.
    assert actual(frontend) == 0
    if frontend.running:
        frontend.stop()
    assert actual(frontend) == 0
    guest.driver.reset()
    guest.bind()
    run_until([guest], lambda: balloon_bytes(guest) == MAXIMUM)
    assert actual(frontend) == MAXIMUM // 4096
    assert guest.ram.check().pages_corrupt == 0
    assert errors(daemon) == []


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
def test_driver_that_reads_actual_right_before_driver_ok_begins_at_0(
    style: Style,
    daemon: Daemon,
    low_mem: LowMemDir,
    make_guest: MakeGuest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guest = make_guest(settings(style))
    frontend = full_vm(daemon, low_mem, guest)
    frontend.stop()
    guest.driver.reset()
    read: list[int] = []
    ready = guest.driver.ready

    def attach() -> None:
        read.append(actual(frontend))
        ready()

    monkeypatch.setattr(guest.driver, "ready", attach)
    guest.bind()

    assert read == [0]


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
def test_byte_that_a_new_driver_writes_first_is_not_completed_by_the_last_ones(
    style: Style, daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    guest = make_guest(settings(style))
    frontend = full_vm(daemon, low_mem, guest)
    frontend.requests.tell(Q.RESET_OWNER)

    frontend.write_config(4, (5).to_bytes(4, "little"))

    assert actual(frontend) == 5


@fault("is paused and resumed")
@pytest.mark.parametrize(
    "style", [*STYLES, QEMU, QEMU_WITHOUT_SLOTS, CROSVM], ids=lambda style: style.name
)
def test_pause_keeps_the_balloon_and_what_is_known_of_it(
    style: Style, daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    guest = make_guest(settings(style))
    frontend = full_vm(daemon, low_mem, guest)

    guest.pause()
    if style.protocol_features & ProtocolFeature.STATUS:
        # QEMU says this for a pause as well as for a reset.
        frontend.requests.tell(Q.SET_STATUS, U64.pack(0))
    guest.resume()

    wait_for_device([guest], daemon, "vm1")
    assert actual(frontend) == MAXIMUM // 4096
    os.kill(daemon.pid, signal.SIGTERM)
    run_until([guest], lambda: bool(guest.disconnected))
    daemon.wait_end()
    assert [r["balloon_bytes"] for r in facts(daemon, "giving-back")] == [MAXIMUM]
    assert guest.ram.check().pages_corrupt == 0


def test_paused_again_and_again_the_balloon_is_kept(
    daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    guest = make_guest(settings(QEMU))
    frontend = full_vm(daemon, low_mem, guest)
    inflated = guest.driver.counters.inflate_buffers
    for _ in range(5):
        guest.pause()
        guest.resume()
        assert actual(frontend) == MAXIMUM // 4096
    assert guest.driver.counters.inflate_buffers == inflated


@fault("is paused and resumed")
@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
def test_pause_at_base_0_keeps_the_balloon_that_is_known(
    style: Style, daemon: Daemon, make_guest: MakeGuest
) -> None:
    # A driver that has given 65536 buffers stands at 0 too; here it has given none since it began.
    guest = make_guest(settings(style))
    guest.connect(str(daemon.config.socket))
    guest.bind()
    frontend = guest.frontend
    assert frontend is not None
    frontend.write_config(4, (4711).to_bytes(4, "little"))

    guest.pause()
    assert guest._rings[0].base == 0
    guest.resume()

    assert actual(frontend) == 4711


def test_reset_while_paused_is_a_reset(
    daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    guest = make_guest(settings(QEMU))
    frontend = full_vm(daemon, low_mem, guest)
    guest.pause()

    guest.driver.reset()
    guest.bind()

    assert actual(frontend) < MAXIMUM // 4096
    run_until([guest], lambda: balloon_bytes(guest) == MAXIMUM)
    assert guest.ram.check().pages_corrupt == 0


def test_reset_while_memory_is_back_asks_for_nothing_that_the_policy_does_not(
    daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    guest = make_guest(settings(STYLES[0]))
    frontend = full_vm(daemon, low_mem, guest)
    low_mem.set_plenty()
    frontend.requests.tell(Q.RESET_DEVICE)
    frontend.stop()
    guest.driver.reset()
    guest.bind()

    # Level by level, as if it had not been reset.
    run_until([guest], lambda: 0 < daemon.target_bytes() < MAXIMUM)
    run_until([guest], lambda: balloon_bytes(guest) == daemon.target_bytes())
    assert (said(daemon, "balloon-sought"), errors(daemon)) == ([], [])


@fault("begins anew (reboot, another driver) and reads `actual`")
def test_reset_whose_controller_is_killed_is_one_under_the_next(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    first = start_daemon("--keep-fds")
    guest = make_guest(settings(STYLES[0]))
    frontend = full_vm(first, low_mem, guest)
    frontend.stop()

    first.kill()
    second = start_daemon("--keep-fds")

    assert actual(frontend) == 0
    guest.driver.reset()
    guest.bind()
    run_until([guest], lambda: balloon_bytes(guest) == MAXIMUM)
    assert (guest.disconnected, errors(second)) == ("", [])


def test_pause_whose_controller_is_killed_is_one_under_the_next(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    first = start_daemon("--keep-fds")
    guest = make_guest(settings(STYLES[0]))
    frontend = full_vm(first, low_mem, guest)
    guest.pause()

    first.kill()
    second = start_daemon("--keep-fds")
    guest.resume()

    assert actual(frontend) == MAXIMUM // 4096
    assert (said(second, "balloon-sought"), errors(second)) == ([], [])
