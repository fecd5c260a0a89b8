"""VMMs that fail or attack a whole balloond: floods, deaf ones, and devices that do not stop."""

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

import psutil
import pytest

from balloon_daemon.fake_guest.client import FakeGuestProcess
from balloon_daemon.fake_guest.machine import FakeGuest, GuestSettings, run
from balloon_daemon.fake_guest.pages import Population
from balloon_daemon.fake_guest.ring import DriverQueue
from balloon_daemon.fake_guest.styles import STYLES, Style
from balloon_daemon.guests.jailed.life import MAX_DEATHS
from balloon_daemon.units import MIB
from balloon_daemon.vhost_user.messages import FrontendRequest, encode_request
from tests.harness.closers import closers
from tests.harness.daemon import Daemon
from tests.harness.faults import fault
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.makers import MAXIMUM, VM_MEM_MIB, MakeGuest, StartDaemon
from tests.harness.short_host import fds_but_figures
from tests.harness.waiting import HANG_S, wait_until
from tests.harness.whole_vm import (
    OF_VMM,
    attach,
    events,
    facts,
    run_until_event,
    wait_for_device,
)

CROWD = 300


@contextlib.contextmanager
def crowd(daemon: Daemon, saying: bytes) -> Iterator[list[socket.socket]]:
    """Connections that say something, or nothing, and stay."""
    with contextlib.ExitStack() as stack:
        visitors = []
        for _ in range(CROWD):
            visitor = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            # Blocking, as QEMU's: without that, connect(2) fails while the backlog is full.
            visitor.connect(str(daemon.config.socket))
            visitor.settimeout(HANG_S)
            visitor.sendall(saying)
            visitors.append(visitor)
        yield visitors


def attached(daemon: Daemon, make_guest: MakeGuest) -> FakeGuest:
    guest = attach(make_guest(), daemon)
    wait_for_device([guest], daemon, "vm1")
    # A child that closes descriptors takes three of balloond's, and is ended once it is idle.
    wait_until(
        lambda: not closers(daemon),
        what="its children that close descriptors have ended",
    )
    return guest


def assert_served(guest: FakeGuest, low_mem: LowMemDir) -> None:
    low_mem.set_low()
    run([guest], lambda: guest.driver.actual * 4096 == MAXIMUM)


def wait_for_descriptors(daemon: Daemon, count: int) -> None:
    wait_until(
        lambda: len(fds_but_figures(daemon)) == count,
        what=f"it has {count} descriptors open",
        seen=lambda: len(fds_but_figures(daemon)),
    )


@fault("300 connections that say nothing")
def test_crowd_that_connects_and_says_nothing_costs_nothing_afterwards(
    daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    neighbour = attached(daemon, make_guest)
    before, lines = len(fds_but_figures(daemon)), len(daemon.records())

    with crowd(daemon, b""):
        wait_for_descriptors(daemon, before + CROWD)
        low_mem.set_low()
        run([neighbour], lambda: neighbour.driver.actual > 0)
    wait_for_descriptors(daemon, before)

    assert_served(neighbour, low_mem)
    said = daemon.records()[lines:]
    # That a VM has not given its memory is said after a minute, which passes here in no time.
    others = [r for r in said if r.get("vm") not in ("vm1", None)]
    assert [r for r in others if r["event"] != "memory-not-shared"] == []


class Farewell(NamedTuple):
    """A line on a connection that was closed.

    Attributes:
        at_s: when, on the monotonic clock.
        left_out: how many more it says have ended.
    """

    at_s: float
    left_out: int


def farewells(daemon: Daemon) -> list[Farewell]:
    ahead_s = time.time() - time.monotonic()
    return [
        Farewell(
            datetime.fromisoformat(record["time"]).timestamp() - ahead_s, record["suppressed"]
        )
        for record in facts(daemon, "connection-closed")
    ]


@fault("300 connections that send garbage")
def test_crowd_that_sends_garbage_is_closed_with_few_lines(
    daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    neighbour = attached(daemon, make_guest)
    before = len(fds_but_figures(daemon))

    began = time.monotonic()
    with crowd(daemon, b"\xff" * 64) as visitors:
        for visitor in visitors:
            with contextlib.suppress(ConnectionResetError):
                assert visitor.recv(1) == b""
    wait_for_descriptors(daemon, before)
    touched = int(time.monotonic() - began) + 2
    assert_served(neighbour, low_mem)
    crowds = farewells(daemon)
    next_second = crowds[-1].at_s + 1.1
    wait_until(lambda: time.monotonic() > next_second, what="another second")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as last:
        last.connect(str(daemon.config.socket))
        last.sendall(b"\xff" * 64)
        run([neighbour], lambda: len(farewells(daemon)) > len(crowds))

    # Ten in each second of the clock, of which the crowd touches the first and the last in part.
    assert 1 <= len(crowds) <= 10 * touched
    # Every connection was said or counted, those last left out by the first one after that.
    assert len(crowds) < CROWD
    assert sum(1 + farewell.left_out for farewell in farewells(daemon)) == CROWD + 1


@fault("never reads our replies")
def test_vmm_that_never_reads_is_closed_before_it_costs_memory(
    daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    neighbour = attached(daemon, make_guest)
    controller = psutil.Process(daemon.pid)
    before = controller.memory_info().rss
    requests = encode_request(FrontendRequest.GET_FEATURES) * 1000

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as deaf:
        deaf.settimeout(HANG_S)
        deaf.connect(str(daemon.config.socket))
        with pytest.raises((BrokenPipeError, ConnectionResetError)):  # noqa: PT012
            for _ in range(1000):
                deaf.sendall(requests)

    assert_served(neighbour, low_mem)
    assert any(
        "of replies were never read" in r["why"] for r in facts(daemon, "connection-closed")
    )
    # What the socket and MAX_UNSENT_BYTES hold, and the allocator's rests; a million replies of
    # 20 bytes were asked for.
    assert controller.memory_info().rss < before + 4 * MIB


@fault("never reads its back-end channel")
def test_vmm_that_never_reads_its_channel_disturbs_nobody(
    daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    neighbour, deaf = attached(daemon, make_guest), attach(make_guest(), daemon)
    assert deaf.frontend is not None
    assert deaf.frontend.requests.channel is not None

    assert_served(neighbour, low_mem)  # The deaf one is not run: it takes no CONFIG_CHANGE_MSG.

    # It was told all the same, in whole messages: run now, it knows what is wanted of it.
    run([deaf], lambda: deaf.driver.actual * 4096 == MAXIMUM)
    assert deaf.frontend.requests.counters.config_changes >= 2
    assert [r for r in daemon.records() if r["level"] == "error"] == []


@fault("sends half a message and keeps its connection open")
@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (5, "header: hung up after 5 of 12 bytes"),
        (15, "SET_VRING_KICK: hung up after 15 of 20 bytes"),
    ],
)
def test_half_a_message_held_open_holds_up_nobody(
    sent: int, said: str, daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    neighbour = attached(daemon, make_guest)
    before = len(fds_but_figures(daemon))
    half = encode_request(FrontendRequest.SET_VRING_KICK, bytes(8))[:sent]

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as vmm:
        vmm.connect(str(daemon.config.socket))
        kick = os.eventfd(0)
        socket.send_fds(vmm, [half], [kick])
        os.close(kick)
        wait_for_descriptors(daemon, before + 2)  # The connection, and what came over it.

        late = attach(make_guest(), daemon)
        wait_for_device([neighbour, late], daemon, "vm3")
        low_mem.set_low()
        guests = [neighbour, late]
        run(guests, lambda: all(guest.driver.actual * 4096 == MAXIMUM for guest in guests))
        held = len(fds_but_figures(daemon))
        assert [r for r in daemon.records() if r.get("vm") == "vm2"] == []

    wait_for_descriptors(daemon, held - 2)
    # The line is written after all else that a turn of the loop does.
    run_until_event(guests, daemon, "connection-closed")
    assert [(r["event"], r["why"]) for r in daemon.records() if r.get("vm") == "vm2"] == [
        ("connection-closed", said)
    ]


# --- a VMM that is stopped while its rings run: its guest answers nothing, for as long as it likes


@contextlib.contextmanager
def guest_process(daemon: Daemon) -> Iterator[FakeGuestProcess]:
    """A VMM that can be stopped without this process."""
    where = ("--socket", str(daemon.config.socket), "--mem", f"{VM_MEM_MIB}M")
    with FakeGuestProcess([*where, "--touched", "64M", "--pinned", "16M"]) as process:
        yield process


@fault("hangs or is stopped (SIGSTOP) while its rings run")
def test_vmm_that_is_stopped_with_running_rings_holds_up_nobody_and_goes_on_later(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    # At speed 5 all levels take 3 s: it is stopped before it has got there.
    daemon = start_daemon("--speed", "5")
    neighbour = attached(daemon, make_guest)
    with guest_process(daemon) as stopped:
        low_mem.set_low()
        stopped.wait_status(lambda s: s["actual_bytes"] > 0, "its first pages")

        os.kill(stopped.pid, signal.SIGSTOP)
        run([neighbour], lambda: neighbour.driver.actual * 4096 == MAXIMUM)
        os.kill(stopped.pid, signal.SIGCONT)
        stopped.wait_status(lambda s: s["actual_bytes"] == MAXIMUM, "the whole balloon")
        assert stopped.command("check")["pages_corrupt"] == 0
        assert [r for r in daemon.records() if r["event"] == "device-died"] == []
        assert facts(daemon, *OF_VMM) == []


@fault("hangs or is stopped while balloond is to end")
def test_vmm_that_is_stopped_holds_up_no_end(
    daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    neighbour = attached(daemon, make_guest)
    with guest_process(daemon) as stopped:
        low_mem.set_low()
        run([neighbour], lambda: neighbour.driver.actual * 4096 == MAXIMUM)
        stopped.wait_status(lambda s: s["actual_bytes"] > 0, "its first pages")

        os.kill(stopped.pid, signal.SIGSTOP)
        os.kill(daemon.pid, signal.SIGTERM)
        run([neighbour], lambda: bool(neighbour.disconnected))
        daemon.wait_end()

    late = facts(daemon, "memory-not-given-back")
    assert len(late) == 1
    # The neighbour is late too where the machine has held it up.
    assert neighbour.driver.actual == 0 or late[0]["vms"] == 2


# --- GET_VRING_BASE: where the rings stand, whatever became of the device ---------------------


def used_idx(queue: DriverQueue) -> int:
    """The device's used.idx as it stands in the guest's memory (virtio 1.3, 2.7.8)."""
    return queue._used16[1]


def half_full(daemon: Daemon, low_mem: LowMemDir, guest: FakeGuest) -> int:
    """A guest in mid-inflate. Returns its device's process id."""
    low_mem.set_low()
    run([guest], lambda: guest.driver.actual * 4096 >= MAXIMUM // 4)
    served = [r for r in daemon.records() if r["event"] == "device-started"]
    return int(served[-1]["pid"])


def assert_pauses_where_it_stands(guest: FakeGuest) -> None:
    guest.pause()
    queues = list(guest.driver.rings.queues.values())
    assert [r.base for r in guest._rings] == [used_idx(queue) for queue in queues]
    assert guest._rings[0].base > 0
    guest.resume()
    run([guest], lambda: guest.driver.actual * 4096 == MAXIMUM)
    assert guest.ram.check().pages_corrupt == 0


def settings(style: Style) -> GuestSettings:
    population = Population(touched_bytes=32 * MIB, pinned_bytes=16 * MIB)
    return GuestSettings(VM_MEM_MIB * MIB, style=style, population=population)


@fault("device does not stop when told (hangs, SIGSTOP)")
@pytest.mark.parametrize("style", STYLES.values(), ids=lambda style: style.name)
def test_device_that_does_not_stop_is_killed_and_the_rings_stand_where_they_do(
    style: Style, daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    guest = attach(make_guest(settings(style)), daemon)
    os.kill(half_full(daemon, low_mem, guest), signal.SIGSTOP)

    assert_pauses_where_it_stands(guest)

    assert len(events(daemon, "device-does-not-stop")) == 1


@fault("more than 5 deaths within a minute")
def test_balloon_that_has_stopped_still_tells_where_its_rings_stand(
    daemon: Daemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    guest = attach(make_guest(), daemon)
    device = half_full(daemon, low_mem, guest)
    killed: set[int] = set()
    while not any(r["deaths"] for r in facts(daemon, "device-died")):
        os.kill(device, signal.SIGKILL)
        killed.add(device)
        run([guest], lambda: len(facts(daemon, "device-died")) == len(killed))
        if len(killed) <= MAX_DEATHS:
            run([guest], lambda: facts(daemon, "device-started")[-1]["pid"] not in killed)
        device = facts(daemon, "device-started")[-1]["pid"]

    guest.pause()

    queues = list(guest.driver.rings.queues.values())
    assert [ring.base for ring in guest._rings] == [used_idx(queue) for queue in queues]
    assert guest._rings[0].base > 0
