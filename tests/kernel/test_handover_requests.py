"""What a VMM was told, and what it waits for, when its controller or the store goes."""

import os
import resource
import signal
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from balloon_daemon.fake_guest.machine import run
from balloon_daemon.units import MIB, PAGE_SIZE
from balloon_daemon.vhost_user.messages import (
    FrontendRequest,
    VringState,
    decode_vring_state,
    encode_request,
)
from benchmarks.guest_file import GuestFile
from benchmarks.ring_guest import INFLATEQ, RingGuest
from benchmarks.tiny_guest import wait_told
from tests.harness.daemon import Daemon
from tests.harness.faults import fault
from tests.harness.fd_keeper import keeper_pid, kept_files
from tests.harness.low_mem_dir import LowMemDir
from tests.harness.makers import VM_MEM_MIB, MakeGuest, StartDaemon
from tests.harness.waiting import wait_until
from tests.harness.whole_vm import attach, events, facts, ready_device, run_until_event

QUEUE_SIZE = 16
BUFFERS = 3
ACTUAL_AT = 4
"""Where ``actual`` lies in the config space (virtio 1.3, 5.5.4)."""

MakeRings = Callable[[Daemon], RingGuest]


@pytest.fixture
def make_rings() -> Iterator[MakeRings]:
    """Guests that say only what a test has them say, each with so many buffers answered."""
    guests: list[RingGuest] = []

    def make(daemon: Daemon) -> RingGuest:
        file = GuestFile.in_memory(VM_MEM_MIB * MIB)
        guest = RingGuest(str(daemon.config.socket), file, QUEUE_SIZE)
        guests.append(guest)
        pages = np.arange(BUFFERS * 256, dtype=np.uint32)
        guest.fill(INFLATEQ, list(pages.reshape(BUFFERS, 256)))
        guest.drain(INFLATEQ)
        return guest

    yield make
    for guest in guests:
        guest.close()
        guest.file.close()


def freeze_device(daemon: Daemon) -> int:
    """Has ending the device take a second. Returns its process id."""
    device = wait_until(lambda: ready_device(daemon, "vm1"), what="the device is ready")
    assert device is not None
    os.kill(device, signal.SIGSTOP)
    return device


GET_BASE = VringState(INFLATEQ, 0).encode()


@fault("controller killed or replaced while a VMM asks where a vring stands")
def test_vring_that_its_vmm_took_back_is_not_served_by_the_next_controller(
    start_daemon: StartDaemon, make_rings: MakeRings
) -> None:
    # The device that only looks where the rings stand has the guest kept in mid-request.
    first = start_daemon("--keep-fds")
    guest = make_rings(first)
    freeze_device(first)
    reply = guest.frontend.requests.ask(FrontendRequest.GET_VRING_BASE, GET_BASE)
    assert decode_vring_state(reply).num == BUFFERS

    first.kill()
    second = start_daemon("--keep-fds")
    wait_until(lambda: facts(second, "taken-over"), what="the next one goes on with it")
    again = guest.frontend.requests.ask(FrontendRequest.GET_VRING_BASE, GET_BASE)

    assert decode_vring_state(again).num == BUFFERS
    assert events(second, "device-started") == []


@fault("controller killed or replaced while a VMM asks where a vring stands")
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGKILL])
def test_request_for_where_a_vring_stands_is_answered_rightly_by_the_next_controller(
    start_daemon: StartDaemon, make_rings: MakeRings, number: signal.Signals
) -> None:
    first = start_daemon("--keep-fds")
    guest = make_rings(first)
    keeper = keeper_pid(first)
    freeze_device(first)
    # A write of ``actual`` is kept 50 ms later: then the request is in hand, and half handled.
    guest.frontend.write_config(ACTUAL_AT, (BUFFERS * 256).to_bytes(4, "little"))
    before = kept_files(keeper)
    guest.frontend.requests.wire.send(encode_request(FrontendRequest.GET_VRING_BASE, GET_BASE))
    wait_until(lambda: kept_files(keeper) != before, what="the guest is kept meanwhile")

    os.kill(first.pid, number)
    first.kill() if number is signal.SIGKILL else first.wait_end()
    start_daemon("--keep-fds")
    message, _ = guest.frontend.requests.wire.receive()

    assert decode_vring_state(message).num == BUFFERS


@fault("stopped just after a guest was asked, before it gave")
def test_guest_that_was_asked_and_has_not_given_yet_is_told_before_the_end(
    start_daemon: StartDaemon, make_rings: MakeRings, low_mem: LowMemDir
) -> None:
    daemon = start_daemon()
    guest = make_rings(daemon)
    wait_until(lambda: ready_device(daemon, "vm1"), what="the device is ready")
    low_mem.set_low()
    wait_told([guest])
    low_mem.set_available(200)
    # It is on its way: ``actual`` comes with its next write.
    os.kill(daemon.pid, signal.SIGTERM)
    wait_until(lambda: guest.frontend.read_config(0, 4) == bytes(4), what="target 0")
    guest.frontend.write_config(ACTUAL_AT, bytes(4))
    daemon.wait_end()


# --- the store ----------------------------------------------------------------------------------


@fault("keeper of a hundred VMs")
def test_keeper_has_the_room_for_descriptors_that_its_controller_has(
    start_daemon: StartDaemon,
) -> None:
    daemon = start_daemon("--keep-fds", launcher=("prlimit", "--nofile=256:8192"))
    limits = [
        resource.prlimit(pid, resource.RLIMIT_NOFILE) for pid in (daemon.pid, keeper_pid(daemon))
    ]
    assert limits == [(8192, 8192)] * 2


@fault("keeper (`--keep-fds`) killed while balloond runs")
def test_keeper_that_dies_is_missed_at_once_and_the_guests_are_not_left_to_it(
    start_daemon: StartDaemon, low_mem: LowMemDir, make_guest: MakeGuest
) -> None:
    daemon = start_daemon("--keep-fds")
    guest = attach(make_guest(), daemon)
    low_mem.set_low()
    run([guest], lambda: guest.driver.actual > 0)

    os.kill(keeper_pid(daemon), signal.SIGKILL)
    run_until_event([guest], daemon, "store-lost")
    os.kill(daemon.pid, signal.SIGUSR1)
    run([guest], lambda: guest.driver.actual == 0 and bool(guest.disconnected))

    (stopping,) = facts(daemon, "stopping")
    assert (stopping["signal"], stopping["vms_stay"]) == ("SIGUSR1", False)


@fault("store (systemd or keeper) takes nothing")
def test_keeper_that_takes_nothing_costs_no_vm_its_balloon(
    start_daemon: StartDaemon, make_guest: MakeGuest, low_mem: LowMemDir
) -> None:
    daemon = start_daemon("--keep-fds")
    guest = attach(make_guest(), daemon)
    keeper = keeper_pid(daemon)
    os.kill(keeper, signal.SIGSTOP)
    try:
        # Each makes the guest kept anew, before it is answered; some 130 fill a usual socket.
        deadline = time.monotonic() + 60
        while not facts(daemon, "store-stalled"):
            assert time.monotonic() < deadline, "the keeper's socket never fills"
            guest.pause()
            guest.resume()
        low_mem.set_low()
        run([guest], lambda: guest.driver.actual * PAGE_SIZE == VM_MEM_MIB // 2 * MIB)
    finally:
        os.kill(keeper, signal.SIGCONT)
    assert guest.disconnected == ""
