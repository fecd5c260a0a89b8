"""A driver that stops at the first page it cannot have, and looks again only when it is told."""

import time
from dataclasses import replace

import pytest

from balloon_daemon.fake_guest.machine import FakeGuest, GuestSettings
from balloon_daemon.fake_guest.styles import CROSVM, QEMU, Style
from balloon_daemon.units import MIB
from tests.harness.daemon import Daemon
from tests.harness.faults import fault
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.makers import MAXIMUM, VM_MEM_MIB, MakeGuest, StartDaemon
from tests.harness.whole_vm import balloon_bytes, decisions, run_until

SETTINGS = GuestSettings(VM_MEM_MIB * MIB)
SPARE_MIB = 100
"""What the guest can give at first."""

SPEED = 20
EVERY_S = 30 / SPEED
"""How often a driver is told again, at this speed."""


def start_vm(guest: FakeGuest, daemon: Daemon, patch: pytest.MonkeyPatch) -> None:
    """A guest as OpenBSD's, or Windows' when Windows is short of memory."""
    patch.setattr(guest.driver, "retry", lambda: None)
    guest.connect(str(daemon.config.socket))
    guest.bind()


def use_memory(guest: FakeGuest, but_mib: int) -> "list[int]":
    """The guest uses all of its memory but so much. Returns the pages."""
    driver = guest.driver
    pages: list[int] = driver.pages.free.take(
        len(driver.pages.free) - but_mib * MIB // 4096
    ).tolist()
    return pages


def looks(daemon: Daemon, reason: str) -> int:
    return [why for why, _ in decisions(daemon)].count(reason)


@fault("stops at the first page that it cannot have")
@pytest.mark.parametrize("style", [QEMU, CROSVM], ids=lambda style: style.name)
def test_driver_that_has_stopped_is_told_again_at_the_top_and_gives_the_rest(
    style: Style,
    daemon: Daemon,
    low_mem: LowMemDir,
    make_guest: MakeGuest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guest = make_guest(replace(SETTINGS, style=style))
    start_vm(guest, daemon, monkeypatch)
    used = use_memory(guest, SPARE_MIB)
    low_mem.set_low()
    run_until([guest], lambda: looks(daemon, "at-maximum") > 0 and guest.driver.idle)
    assert balloon_bytes(guest) == SPARE_MIB * MIB
    told = guest.driver.counters.config_interrupts

    for page in used:
        guest.driver.pages.free.give([page])  # type: ignore[arg-type]  # numpy takes a list, too
    run_until([guest], lambda: balloon_bytes(guest) == MAXIMUM)

    assert guest.driver.counters.config_interrupts > told


def test_driver_that_gives_nothing_more_is_told_each_30_s_and_no_more_often(
    daemon: Daemon,
    low_mem: LowMemDir,
    make_guest: MakeGuest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guest = make_guest(SETTINGS)
    start_vm(guest, daemon, monkeypatch)
    use_memory(guest, SPARE_MIB)
    low_mem.set_low()
    run_until([guest], lambda: looks(daemon, "at-maximum") > 0)
    told, began = guest.driver.counters.config_interrupts, time.monotonic()

    run_until([guest], lambda: guest.driver.counters.config_interrupts >= told + 3)

    # The first one may come right away: its target was told a moment before that look.
    assert time.monotonic() - began >= 1.5 * EVERY_S
    assert balloon_bytes(guest) == SPARE_MIB * MIB


@fault("stops at the first page that it cannot have")
def test_driver_that_has_got_there_is_not_told_again(
    daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = make_guest(SETTINGS)
    start_vm(guest, daemon, monkeypatch)
    low_mem.set_low()
    run_until([guest], lambda: balloon_bytes(guest) == MAXIMUM)
    told = guest.driver.counters.config_interrupts

    # A look each second of the policy's: two minutes, in which one that is short hears four times.
    before = looks(daemon, "at-maximum")
    run_until([guest], lambda: looks(daemon, "at-maximum") >= before + 120)

    assert guest.driver.counters.config_interrupts == told


@fault("stops at the first page that it cannot have")
def test_driver_is_not_told_again_while_memory_is_not_low(
    daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = make_guest(SETTINGS)
    start_vm(guest, daemon, monkeypatch)
    use_memory(guest, SPARE_MIB)
    low_mem.set_low()
    run_until([guest], lambda: looks(daemon, "at-maximum") > 0)
    low_mem.set_available(110)  # Not low, and too little to give anything back.
    told = guest.driver.counters.config_interrupts

    run_until([guest], lambda: looks(daemon, "not-enough-back") >= 2)

    # One may have been on its way.
    assert guest.driver.counters.config_interrupts <= told + 1


def test_driver_below_the_top_is_told_its_next_level_when_memory_is_low_again(
    start_daemon: StartDaemon,
    low_mem: LowMemDir,
    make_guest: MakeGuest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    daemon = start_daemon("--speed", "5")
    guest = make_guest(SETTINGS)
    start_vm(guest, daemon, monkeypatch)
    used = use_memory(guest, 4)
    low_mem.set_low()
    run_until([guest], lambda: looks(daemon, "low-memory") >= 2)
    low_mem.set_available(110)
    level = daemon.decision()["balloon_level"]
    assert level < 16
    guest.driver.pages.free.give(used)  # type: ignore[arg-type]  # numpy takes a list, too

    low_mem.set_low()
    run_until([guest], lambda: balloon_bytes(guest) > 4 * MIB)
