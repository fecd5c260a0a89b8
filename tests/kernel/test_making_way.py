"""A controller that is told to make way ends, whatever happens in the same moment."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from balloon_daemon.fake_guest.wire import Wire
from balloon_daemon.handover.keeper_start import keeper_path
from balloon_daemon.units import MIB
from balloon_daemon.vhost_user.messages import (
    U64,
    FrontendRequest,
    VringState,
    decode_vring_state,
    encode_request,
)
from benchmarks.guest_file import GuestFile
from benchmarks.ring_guest import DEFLATEQ, INFLATEQ, RingGuest, area_bytes
from tests.harness.daemon import Daemon, DaemonError
from tests.harness.faults import fault
from tests.harness.frozen import Frozen, wait_state
from tests.harness.makers import StartDaemon
from tests.harness.waiting import wait_until
from tests.harness.whole_vm import ready_device, unread_bytes

QUEUE_SIZE = 16
BUFFERS = 3
DEADLINE_S = 60.0
"""Only a hang takes so long."""

MakeRings = Callable[[Daemon], RingGuest]


@pytest.fixture
def make_rings() -> Iterator[MakeRings]:
    """Guests that say only what a test has them say, each with some buffers answered."""
    guests: list[RingGuest] = []

    def make(daemon: Daemon) -> RingGuest:
        file = GuestFile.in_memory(4 * MIB + area_bytes(QUEUE_SIZE))
        guest = RingGuest(str(daemon.config.socket), file, QUEUE_SIZE)
        guest.frontend.requests.wire.timeout_s = DEADLINE_S
        guests.append(guest)
        pages = np.arange(BUFFERS * 256, dtype=np.uint32)
        guest.fill(INFLATEQ, list(pages.reshape(BUFFERS, 256)))
        guest.drain(INFLATEQ)
        return guest

    yield make
    for guest in guests:
        guest.close()
        guest.file.close()


def device_of(daemon: Daemon) -> int:
    device = wait_until(
        lambda: ready_device(daemon, "vm1"), deadline_s=DEADLINE_S, what="the device is ready"
    )
    assert device is not None
    return device


def wait_taken(daemon: Daemon, wire: Wire) -> None:
    """Waits until the controller has taken what a VMM sent, and waits for something itself."""
    wait_until(lambda: unread_bytes(wire) == 0, deadline_s=DEADLINE_S, what="it is taken")
    wait_state(daemon.pid, "S")


def answered(guest: RingGuest) -> bytes:
    """The next answer's payload, from whichever controller."""
    message, _ = guest.frontend.requests.wire.receive()
    return message.payload


GET_BASE = VringState(INFLATEQ, 0).encode()
DISABLE = encode_request(
    FrontendRequest.SET_VRING_ENABLE, VringState(DEFLATEQ, 0).encode(), ack=True
)


@fault("SIGUSR1 arrives as a device ends")
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_told_to_end_as_a_device_ends_the_controller_ends(
    number: signal.Signals, start_daemon: StartDaemon, make_rings: MakeRings
) -> None:
    # Python 3.11's asyncio.wait_for() returns the device's end, and forgets that it was cancelled.
    first = start_daemon("--keep-fds")
    guest = make_rings(first)
    device = device_of(first)
    os.kill(device, signal.SIGSTOP)
    guest.frontend.requests.wire.send(DISABLE)
    wait_taken(first, guest.frontend.requests.wire)

    with Frozen(first):
        os.kill(device, signal.SIGCONT)
        wait_state(device, "Z")
        os.kill(first.pid, number)
    first.wait_end()

    if number is signal.SIGUSR1:
        start_daemon("--keep-fds")
        assert answered(guest) == U64.pack(0)
        reply = guest.frontend.requests.ask(FrontendRequest.GET_VRING_BASE, GET_BASE)
        assert decode_vring_state(reply).num == BUFFERS


@fault("SIGUSR1 arrives as a device ends")
@pytest.mark.parametrize("descriptor", [False, True], ids=["without", "with_a_descriptor"])
@pytest.mark.parametrize("first_comes", ["request", "signal"])
def test_told_to_make_way_as_a_request_comes_the_next_one_answers_it(
    first_comes: str, descriptor: bool, start_daemon: StartDaemon, make_rings: MakeRings
) -> None:
    first = start_daemon("--keep-fds")
    guest = make_rings(first)
    device_of(first)
    wait_taken(first, guest.frontend.requests.wire)
    call = os.eventfd(0)

    with Frozen(first):
        if first_comes == "signal":
            os.kill(first.pid, signal.SIGUSR1)
        if descriptor:
            set_call = encode_request(FrontendRequest.SET_VRING_CALL, U64.pack(INFLATEQ), ack=True)
            guest.frontend.requests.wire.send(set_call, [call])
        else:
            guest.frontend.requests.wire.send(DISABLE)
        if first_comes == "request":
            os.kill(first.pid, signal.SIGUSR1)
    first.wait_end()
    start_daemon("--keep-fds")

    assert answered(guest) == U64.pack(0)
    assert guest.frontend.requests.ask(FrontendRequest.GET_FEATURES).payload
    os.close(call)


@fault("SIGUSR1 arrives as a device ends")
def test_told_to_make_way_while_it_looks_where_a_ring_stands_the_next_one_answers(
    start_daemon: StartDaemon, make_rings: MakeRings
) -> None:
    # The device that only looks ends in the same turn.
    first = start_daemon("--keep-fds")
    guest = make_rings(first)
    device = device_of(first)
    os.kill(device, signal.SIGSTOP)
    guest.frontend.requests.wire.send(encode_request(FrontendRequest.GET_VRING_BASE, GET_BASE))
    wait_taken(first, guest.frontend.requests.wire)

    with Frozen(first):
        os.kill(device, signal.SIGKILL)
        wait_state(device, "Z")
        os.kill(first.pid, signal.SIGUSR1)
    first.wait_end()
    start_daemon("--keep-fds")

    message, _ = guest.frontend.requests.wire.receive()
    assert decode_vring_state(message).num == BUFFERS


# --- the last resort ----------------------------------------------------------------------------

PROGRAM = """\
import asyncio, sys, time
from balloon_daemon.guests.jailed import session as guests
from balloon_daemon.controller import ending
del sys.argv[1]  # Whom this is started instead of.
ending.END_WITHIN_S, ending.GONE_WITHIN_S = {within}
async def close(self):
    {hangs}
guests.Session._close = close
from balloon_daemon.__main__ import main
sys.exit(main())
"""

NEVER = """
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass
"""


@fault("a task of a controller that is to end does not (a bug)")
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_task_that_does_not_end_is_left_behind(
    number: signal.Signals, start_daemon: StartDaemon, make_rings: MakeRings, tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(within="0.3, 60", hangs=NEVER))
    first = start_daemon("--keep-fds", launcher=(sys.executable, str(program)))
    guest = make_rings(first)
    device_of(first)

    os.kill(first.pid, number)
    # Its exit status is 0, and its log says whom it left.
    with pytest.raises(
        DaemonError, match=r"logged errors:\n.*'vm1'.*does not end: ending without it"
    ):
        first.wait_end()

    if number is signal.SIGUSR1:
        start_daemon("--keep-fds")
        reply = guest.frontend.requests.ask(FrontendRequest.GET_VRING_BASE, GET_BASE)
        assert decode_vring_state(reply).num == BUFFERS
    else:
        assert not first.config.socket.exists()
        assert not keeper_path(first.config.socket).exists()


@fault("the event loop of a controller that is to end hangs (a bug)")
def test_event_loop_that_hangs_while_it_makes_way_is_ended_and_the_next_one_goes_on(
    start_daemon: StartDaemon, make_rings: MakeRings, tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(within="60, 0.3", hangs="time.sleep(3600)"))
    first = start_daemon("--keep-fds", launcher=(sys.executable, str(program)))
    guest = make_rings(first)
    device_of(first)

    os.kill(first.pid, signal.SIGUSR1)
    with pytest.raises(DaemonError, match=f"ended with status -{signal.SIGALRM:d}"):
        first.wait_end()

    start_daemon("--keep-fds")
    reply = guest.frontend.requests.ask(FrontendRequest.GET_VRING_BASE, GET_BASE)
    assert decode_vring_state(reply).num == BUFFERS
