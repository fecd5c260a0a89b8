"""A controller that is killed, restarted or replaced: the VM keeps its balloon."""

import os
import signal
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from balloon_daemon.fake_guest.machine import GuestSettings, run
from balloon_daemon.fake_guest.pages import Population
from balloon_daemon.fake_guest.styles import QEMU, QEMU_WITHOUT_SLOTS, STYLES, Style
from balloon_daemon.fake_guest.wire import Wire
from balloon_daemon.handover.keeper_start import keeper_path
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.linux.memory import create_memfd
from balloon_daemon.units import MIB, FrontendAddr, GuestAddr
from balloon_daemon.vhost_user.messages import FrontendRequest, RegionDescription, encode_request
from tests.harness.daemon import BALLOOND, Daemon
from tests.harness.faults import fault
from tests.harness.fd_keeper import file_of, keeper_pid, kept_files
from tests.harness.jail_watch import template_of
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.makers import MAXIMUM, SETTINGS, VM_MEM_MIB, MakeGuest, StartDaemon
from tests.harness.open_files import open_files
from tests.harness.short_host import is_asleep
from tests.harness.slow_close import lingering_socket
from tests.harness.waiting import HANG_S, wait_until
from tests.harness.ways_to_fork import Way
from tests.harness.whole_vm import (
    assert_all_back,
    attach,
    facts,
    ready_device,
    unread_bytes,
    wait_for_device,
)


def moment(daemon: Daemon, event: str) -> float | None:
    """When an event with this word happened first, in seconds."""
    return first_moment(facts(daemon, event))


def moment_back(daemon: Daemon) -> float | None:
    """When memory was found to be back first, in seconds."""
    return first_moment([r for r in facts(daemon, "decided") if r["reason"] == "memory-back"])


def first_moment(records: list[dict[str, Any]]) -> float | None:
    return datetime.fromisoformat(records[0]["time"]).timestamp() if records else None


@fault("controller killed, with a store (systemd, or `--keep-fds`)")
@pytest.mark.parametrize("style", STYLES.values(), ids=lambda style: style.name)
def test_controller_killed_in_mid_inflate_the_next_goes_on(
    style: Style, start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    first = start_daemon("--keep-fds")
    population = Population(touched_bytes=128 * MIB, pinned_bytes=32 * MIB)
    settings = GuestSettings(VM_MEM_MIB * MIB, style=style, population=population)
    guest = attach(make_guest(settings), first)
    low_mem.set_low()
    run([guest], lambda: guest.driver.actual > 0)

    first.kill()
    second = start_daemon("--keep-fds", name="balloond")
    run([guest], lambda: guest.driver.actual * 4096 == MAXIMUM)
    low_mem.set_plenty()

    assert guest.disconnected == ""
    assert len(facts(second, "taken-over")) == 1
    check = guest.ram.check()
    assert (check.pages_corrupt, check.balloon_resident) == (0, 0)


@fault("controller killed, with a store (systemd, or `--keep-fds`)")
def test_killed_again_and_again_at_any_moment_nothing_is_lost(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    daemon = start_daemon("--keep-fds")
    guest = attach(make_guest(SETTINGS), daemon)
    low_mem.set_low()

    # After so many buffers each: the kill falls into the middle of traffic, each time elsewhere.
    for buffers in (1, 7, 40, 3, 90, 2):
        before = guest.driver.counters.inflate_buffers
        run(
            [guest],
            lambda before=before, buffers=buffers: (  # type: ignore[misc]  # bound per turn
                guest.driver.counters.inflate_buffers >= before + buffers
                or guest.driver.actual * 4096 == MAXIMUM
            ),
        )
        daemon.kill()
        daemon = start_daemon("--keep-fds")
    run([guest], lambda: guest.driver.actual * 4096 == MAXIMUM)

    assert guest.disconnected == ""
    assert guest.ram.check().pages_corrupt == 0
    assert [r for r in daemon.records() if r["level"] == "error"] == []


@fault("`systemctl restart`, SIGUSR1")
def test_replaced_by_sigusr1_keeps_level_and_balloon(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    first = start_daemon("--keep-fds")
    guest = attach(make_guest(SETTINGS), first)
    low_mem.set_low()
    run([guest], lambda: guest.driver.actual * 4096 == MAXIMUM)

    os.kill(first.pid, signal.SIGUSR1)
    first.wait_end()
    second = start_daemon("--keep-fds")
    run([guest], lambda: facts(second, "taken-over") != [])

    restored = next(r for r in second.records() if r.get("reason") == "restored")
    assert restored["balloon_level"] == 16
    assert guest.driver.actual * 4096 == MAXIMUM
    assert guest.driver.counters.deflate_buffers == 0


@fault("controller killed, with a store (systemd, or `--keep-fds`)")
def test_timers_go_on_from_what_was_left(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    # At speed 20 the first release is due 3 to 3.6 s after the last low-memory event. The next
    # controller runs at speed 1: were it begun anew there, it would come a minute later at least.
    first = start_daemon("--keep-fds", "--speed", "20")
    guest = attach(make_guest(SETTINGS), first)
    low_mem.set_low()
    run([guest], lambda: guest.driver.actual * 4096 == MAXIMUM)
    low_mem.set_plenty()

    first.kill()
    second = start_daemon("--keep-fds", "--speed", "1")
    run([guest], lambda: moment_back(second) is not None, deadline_s=2 * HANG_S)

    assert guest.disconnected == ""
    began, released = moment(second, "listening"), moment_back(second)
    assert began is not None
    assert released is not None
    assert released - began < 60.0


@fault("controller killed, with a store (systemd, or `--keep-fds`)")
def test_paused_vm_is_kept_and_resumes_under_the_next(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    first = start_daemon("--keep-fds")
    guest = attach(make_guest(SETTINGS), first)
    low_mem.set_low()
    run([guest], lambda: guest.driver.actual > 0)
    guest.pause()

    first.kill()
    start_daemon("--keep-fds")
    guest.resume()
    run([guest], lambda: guest.driver.actual * 4096 == MAXIMUM)

    assert guest.ram.check().pages_corrupt == 0


PATIENT = (
    sys.executable,
    "-c",
    """
import sys
from balloon_daemon.__main__ import main
from balloon_daemon.guests.jailed.life import WAIT_S, Wait
WAIT_S[Wait.STOPPED] = 600.0
del sys.argv[0]
sys.exit(main())
""",
)
"""Starts a controller that gives a device all the time to stop that a test may need."""


@fault("controller killed in the middle of a VMM's request")
@pytest.mark.parametrize(
    ("style", "request_"),
    [(QEMU, "GET_VRING_BASE"), (QEMU, "ADD_MEM_REG"), (QEMU_WITHOUT_SLOTS, "SET_MEM_TABLE")],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_controller_killed_in_the_middle_of_a_request_the_next_one_answers_it(
    style: Style,
    request_: str,
    start_daemon: StartDaemon,
    low_mem: LowMemDir,
    make_guest: MakeGuest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = start_daemon("--keep-fds", launcher=PATIENT)
    guest = attach(make_guest(replace(SETTINGS, style=style)), first)
    more = OwnedFd(create_memfd("dimm", size_bytes=2 * MIB))
    dimm = RegionDescription(GuestAddr(1 << 40), 2 * MIB, FrontendAddr(1 << 46), 0)

    def ask() -> None:
        """What makes a device end, without descriptors and with them."""
        assert guest.frontend is not None
        if request_ == "GET_VRING_BASE":
            guest.pause()
        else:
            guest.frontend.share_memory([*guest.ram.shared(), (dimm, more.fileno())])

    device = wait_for_device([guest], first, "vm1")
    low_mem.set_low()
    run([guest], lambda: guest.driver.actual > 0)
    wire = guest.frontend.requests.wire if guest.frontend is not None else None
    assert wire is not None
    send, sent = wire.send, threading.Event()

    def send_and_tell(data: bytes, fds: Sequence[int] = ()) -> None:
        send(data, fds)
        sent.set()

    monkeypatch.setattr(wire, "send", send_and_tell)

    # A device that does not stop is waited for, and the request that stops it takes as long.
    os.kill(device, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as vmm:
        asking = vmm.submit(ask)
        assert sent.wait(HANG_S)
        wait_until(lambda: unread_bytes(wire) == 0, what="the request is taken")
        if request_ != "GET_VRING_BASE":
            # Killed before that, descriptors are lost: see docs/reliability.md.
            file, keeper = file_of(os.fstat(more.fileno())), keeper_pid(first)
            # Asleep it has sent the state that names it, too.
            wait_until(
                lambda: file in kept_files(keeper) and is_asleep(first.pid),
                what="the keeper has it",
            )
        first.kill()
        assert not asking.done()
        second = start_daemon("--keep-fds")
        asking.result()

    more.close()
    if request_ == "GET_VRING_BASE":
        guest.resume()
    run([guest], lambda: guest.driver.actual * 4096 == MAXIMUM)
    assert guest.disconnected == ""
    assert guest.ram.check().pages_corrupt == 0
    assert [r for r in second.records() if r["level"] == "error"] == []


@fault("VMM hangs up while no controller runs")
def test_vmm_that_hung_up_meanwhile_is_dropped_at_once_and_its_neighbour_kept(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    first = start_daemon("--keep-fds")
    guest = attach(make_guest(SETTINGS), first)
    neighbour = attach(make_guest(SETTINGS), first)
    low_mem.set_low()
    run([guest, neighbour], lambda: min(guest.driver.actual, neighbour.driver.actual) > 0)
    first.kill()
    keeper = keeper_pid(first)
    memory, other_memory = (file_of(os.fstat(one.ram.fd)) for one in (guest, neighbour))
    wait_until(
        lambda: kept_files(keeper) >= {memory, other_memory},
        what="the keeper has taken all that was sent to it",
    )

    guest.hang_up()
    # Nobody starts a balloond, and the guest's memory is let go of all the same.
    wait_until(
        lambda: memory not in kept_files(keeper),
        what="the keeper drops the guest that is gone",
    )
    assert other_memory in kept_files(keeper)
    second = start_daemon("--keep-fds")
    run([neighbour], lambda: neighbour.driver.actual * 4096 == MAXIMUM)

    restored = [r["vm"] for r in second.records() if r.get("reason") == "restored"]
    assert restored == ["vm2"]
    assert [r for r in second.records() if r["level"] == "error"] == []


def written_together(pid: int) -> set[int]:
    """The inodes that a process has mapped shared and writable; none of one that has ended."""
    try:
        maps = [line.split() for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    except (FileNotFoundError, ProcessLookupError):
        return set()
    # The C library's cache of character sets is shared too, read-only.
    return {int(fields[4]) for fields in maps if fields[1] == "rw-s"}


@pytest.mark.parametrize("way", Way)
def test_device_maps_nothing_shared_but_its_own_guests_memory(
    way: Way, start_daemon: StartDaemon, make_guest: MakeGuest
) -> None:
    # Not the journals of all guests, which the controller has mapped writable.
    daemon = start_daemon("--keep-fds")
    guests = [attach(make_guest(), daemon) for _ in range(2)]
    device = wait_for_device(guests, daemon, "vm2")
    killed = None
    if way is not Way.TEMPLATE:
        os.kill(template_of(daemon.pid), signal.SIGKILL)
        os.kill(killed := device, signal.SIGKILL)
    shared: set[int] = set()

    def look() -> bool:
        # One that is killed or about to be replaced may still be named, and maps nothing any more.
        named = ready_device(daemon, "vm2")
        shared.clear()
        if named not in (None, killed):
            shared.update(written_together(named))
        return bool(shared)

    run(guests, look)
    assert shared == {os.fstat(guests[1].ram.fd).st_ino}


@fault("VMM connects while no controller runs")
def test_vmm_that_connects_while_nobody_runs_is_served_by_the_next(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    first = start_daemon("--keep-fds")
    attach(make_guest(SETTINGS), first)
    first.kill()
    late = make_guest(SETTINGS)

    # Connected, and its first request sent, before there is anybody to take either.
    wire = Wire.connect(str(first.config.socket))
    wire.send(encode_request(FrontendRequest.GET_FEATURES))
    start_daemon("--keep-fds")
    answer, _ = wire.receive()
    late.attach(wire)
    late.bind()
    low_mem.set_low()
    run([late], lambda: late.driver.actual * 4096 == MAXIMUM)

    assert answer.request == FrontendRequest.GET_FEATURES


@fault("VMM hangs up while no controller runs")
def test_socket_that_lingers_in_what_a_vmm_left_does_not_hold_up_the_next_start(
    start_daemon: StartDaemon,
) -> None:
    first = start_daemon("--keep-fds")
    enemy = Wire.connect(str(first.config.socket))
    enemy.send(encode_request(FrontendRequest.GET_FEATURES))
    enemy.receive()
    # Its connection is kept by what it says next, and by what comes after that.
    enemy.send(encode_request(FrontendRequest.SET_OWNER))
    enemy.send(encode_request(FrontendRequest.GET_FEATURES))
    enemy.receive()
    first.kill()
    with lingering_socket() as sock:
        # Nobody takes it any more: the keeper is the last that has it.
        enemy.send(encode_request(FrontendRequest.SET_BACKEND_REQ_FD), [sock.fileno()])
        os.close(sock.detach())
        enemy.close()
        keeper = keeper_pid(first)
        wait_until(
            lambda: "balloond-vm1" not in " ".join(open_files(keeper).values()),
            what="the VM is dropped",
        )

        second = start_daemon("--keep-fds")
        wire = Wire.connect(str(second.config.socket))
        wire.send(encode_request(FrontendRequest.GET_FEATURES))
        wire.receive()
        wire.close()
        assert [r for r in second.records() if r["level"] == "error"] == []


@fault("`systemctl stop`, SIGTERM, SIGINT")
def test_sigterm_gives_all_back_and_the_keeper_ends(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    daemon = start_daemon("--keep-fds")
    guest = attach(make_guest(SETTINGS), daemon)
    low_mem.set_low()
    run([guest], lambda: guest.driver.actual > 0)

    os.kill(daemon.pid, signal.SIGTERM)
    run([guest], lambda: bool(guest.disconnected))
    daemon.wait_end()

    assert_all_back(guest, daemon)
    wait_until(
        lambda: not keeper_path(daemon.config.socket).exists(),
        what="the keeper's socket is gone",
    )


@fault("two balloonds on one keeper, or on one socket")
def test_keeper_of_a_living_daemon_serves_no_second_one(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    import subprocess

    daemon = start_daemon("--keep-fds")

    run = subprocess.run(
        [str(BALLOOND), "--socket", str(daemon.config.socket), "--keep-fds"],
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )

    assert run.returncode == 1
    assert "a running balloond uses it" in run.stderr
    assert run.stderr.count("\n") == 1
