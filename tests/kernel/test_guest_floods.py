"""Guests that flood a whole balloond: they hurt themselves, not the log nor their neighbour."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from balloon_daemon.fake_guest.machine import FakeGuest, run
from tests.harness.daemon import Daemon
from tests.harness.faults import fault
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.makers import MAXIMUM, MakeGuest
from tests.harness.waiting import wait_until
from tests.harness.whole_vm import attach, wait_for_device

KICKS_A_SECOND = 10_000
KICKS = 5_000
"""Twice as many as the device's allowance pays for."""

BURST = 100
"""Kicks between two looks at the clock."""


@contextmanager
def flood(guest: FakeGuest) -> Iterator[Callable[[], int]]:
    """Kicks every queue of a guest without any work, 10,000 times a second, for the block's time.

    Gives a function that tells the kicks so far.
    """
    assert guest.frontend is not None
    frontend = guest.frontend
    done = threading.Event()
    count = 0

    def kick() -> None:
        nonlocal count
        began = time.monotonic()
        while not done.wait(max(0.0, began + count / KICKS_A_SECOND - time.monotonic())):
            for number in range(BURST):
                frontend.kick(number % 5)
            count += BURST

    thread = threading.Thread(target=kick)
    thread.start()
    try:
        yield lambda: count
    finally:
        done.set()
        thread.join()


def info_lines(daemon: Daemon, event: str) -> list[str]:
    """Lines that would be logged without --verbose."""
    return [
        record["message"]
        for record in daemon.records()
        if record["event"] == event and record["level"] != "debug"
    ]


@fault("floods with kicks without work, or with loops")
def test_kicks_without_work_keep_neither_the_neighbour_nor_the_flooder_from_its_target(
    daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    neighbour, flooder = attach(make_guest(), daemon), attach(make_guest(), daemon)
    guests = [neighbour, flooder]
    wait_for_device(guests, daemon, "vm1")
    device = wait_for_device(guests, daemon, "vm2")
    with flood(flooder) as kicks:
        run([neighbour], lambda: kicks() >= KICKS)
        low_mem.set_low()
        run([neighbour], lambda: neighbour.driver.actual * 4096 == MAXIMUM)
        # The flooder itself is only slowed down.
        run(guests, lambda: flooder.driver.actual * 4096 == MAXIMUM)
    # What it may cost, test_device_pace.py and test_device_faults.py hold to.
    assert wait_for_device(guests, daemon, "vm2") == device


@fault("writes `actual`, or resets its device, over and over")
def test_actual_written_over_and_over_does_not_fill_the_log(
    daemon: Daemon, make_guest: MakeGuest
) -> None:
    guest = attach(make_guest(), daemon)
    wait_for_device([guest], daemon, "vm1")
    assert guest.frontend is not None
    began = time.monotonic()

    for _ in range(1000):
        guest.frontend.write_config(4, bytes(4))

    # The last lines are written after the answer. This daemon logs for debugging too.
    wait_until(
        lambda: [r["event"] for r in daemon.records()].count("target-reached") >= 1000,
        what="each write is in the log",
    )
    said = info_lines(daemon, "target-reached")
    seconds = int(time.monotonic() - began) + 2
    assert len(said) <= 4 * seconds


@fault("writes `actual`, or resets its device, over and over")
def test_device_reset_over_and_over_does_not_fill_the_log(
    daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    began = time.monotonic()
    guest = attach(make_guest(), daemon)

    for number in range(12):
        run(
            [guest],
            lambda number=number: (  # type: ignore[misc]  # bound per turn
                len([r for r in daemon.records() if r["event"] == "device-started"]) > number
            ),
        )
        guest.reboot()

    said = info_lines(daemon, "device-started")
    seconds = int(time.monotonic() - began) + 2
    assert len(said) <= 2 * seconds
    low_mem.set_low()
    run([guest], lambda: guest.driver.actual * 4096 == MAXIMUM)
