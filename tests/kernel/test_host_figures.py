"""Where low memory comes from: a whole balloond on hosts whose figures a good guess gets wrong."""

import os
from collections.abc import Callable

import pytest

from balloon_daemon.fake_guest.machine import FakeGuest, run, step
from tests.kernel.conftest import MARGIN_MIB, MakeGuest, StartDaemon
from tests.kernel.test_balloond_guests import MAXIMUM, attach, events
from tests.vm.daemon import Daemon
from tests.vm.low_mem_dir import LowMemDir

FULL_SPEED = "200"
"""A release takes 0.15 s then, so that all is returned within 3 s."""


def balloon_bytes(guest: FakeGuest) -> int:
    return guest.driver.actual * 4096


def fill(guest: FakeGuest, low_mem: LowMemDir) -> None:
    low_mem.set_low()
    until(guest, lambda: balloon_bytes(guest) == MAXIMUM)


def set_margin(low_mem: LowMemDir, content: str) -> None:
    new = low_mem.path / "margin.new"
    new.write_text(content)
    os.replace(new, low_mem.path / "margin")


def until(guest: FakeGuest, condition: Callable[[], bool]) -> None:
    """Lets the guest run until a condition holds, for as long as only a hang takes."""
    run([guest], condition, deadline_s=60)


def until_logged(guest: FakeGuest, daemon: Daemon, text: str) -> None:
    until(guest, lambda: any(text in record["message"] for record in daemon.records()))


def source_lines(daemon: Daemon) -> list[str]:
    return events(daemon, "source")


# --- a notifier that is switched off ---


@pytest.mark.parametrize("available", ["1048576\n", "0\n", "much\n", None])
def test_margin_switched_off_gives_a_full_balloon_back_whatever_is_available(
    available: str | None, start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    daemon = start_daemon("--speed", FULL_SPEED)
    guest = attach(make_guest(), daemon)
    fill(guest, low_mem)

    set_margin(low_mem, "off\n")
    if available is None:
        (low_mem.path / "available").unlink()
    else:
        low_mem.set_content(available)
    # Past the end of the way down too: nothing is ever taken again.
    until(guest, lambda: daemon.decision()["reason"] == "all-returned")

    steps = [r for r in daemon.records() if r.get("reason") == "switched-off"]
    assert balloon_bytes(guest) == 0
    assert steps != []
    assert source_lines(daemon) == [
        f"low memory is switched off ({low_mem.path}/margin says off): "
        "nothing is low, balloons are given back"
    ]


def test_margin_switched_off_and_on_again_takes_again(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    daemon = start_daemon("--speed", FULL_SPEED)
    guest = attach(make_guest(), daemon)
    set_margin(low_mem, "off")
    low_mem.set_low()
    until_logged(guest, daemon, "low memory is switched off")

    set_margin(low_mem, f"{MARGIN_MIB} 3200 \n")
    until(guest, lambda: balloon_bytes(guest) == MAXIMUM)

    assert source_lines(daemon)[1:] == [
        f"low memory is switched on again, with a margin of {MARGIN_MIB} MiB"
    ]
    taken = [r for r in daemon.records() if r.get("reason") == "low-memory"]
    assert [r["margin_mib"] for r in taken] == [MARGIN_MIB] * 16


def test_margin_switched_off_is_overruled_by_one_that_was_given(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    set_margin(low_mem, "off\n")
    daemon = start_daemon("--margin", "300M")
    guest = attach(make_guest(), daemon)

    low_mem.set_available(299)
    until(guest, lambda: balloon_bytes(guest) == MAXIMUM)

    assert source_lines(daemon) == []


def test_two_causes_that_alternate_do_not_fill_the_log(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    daemon = start_daemon("--speed", FULL_SPEED)
    guest = attach(make_guest(), daemon)
    broken = [("much\n", "holds b'much"), ("", "is empty")]
    for content, complaint in broken:
        low_mem.set_content(content)
        until_logged(guest, daemon, complaint)

    # A reading comes every 5 ms: most turns are seen.
    for content, _ in broken * 50:
        low_mem.set_content(content)
        step([guest], 0.01)
    (low_mem.path / "available").unlink()
    until_logged(guest, daemon, "No such file or directory")

    assert len(source_lines(daemon)) == 3
