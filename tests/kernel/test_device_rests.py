"""What one queue of a guest may cost its device, and that the other queues do not wait for it."""

import os
import socket
import struct
import time
from collections.abc import Callable, Iterator

import pytest

from balloon_daemon.device.balloon import MAX_PARTS, MAX_REPORT_BYTES
from balloon_daemon.device.pace import UNASKED
from balloon_daemon.device.request import (
    MAX_DATAGRAM_BYTES,
    decode_spec,
    receive_request,
    send_request,
)
from balloon_daemon.device.spec import DeviceSpec
from balloon_daemon.errors import Rule
from balloon_daemon.guests.jailed.device_spec import device_spec
from balloon_daemon.tube.messages import Fault, FaultKind, Target
from balloon_daemon.units import PAGE_SIZE, GuestAddr
from balloon_daemon.vhost_user.backend import Backend
from balloon_daemon.vhost_user.memory_table import MemoryTable
from balloon_daemon.virtio.balloon import BalloonQueue
from balloon_daemon.virtio.split_queue import VIRTQ_DESC_F_NEXT
from tests.fakes.counted_fd import inspect
from tests.harness.device_rig import DRIVER_PAGES, DeviceRig
from tests.harness.faults import fault
from tests.harness.short_host import cpu_s

INFLATEQ, DEFLATEQ, STATSQ, _, REPORTING_VQ = BalloonQueue
RING_SIZE = 512
WASTE_SHARE = 0.2
"""Of a core: 5 % for ever, and what pace.py only estimates."""


@pytest.fixture
def rig() -> Iterator[DeviceRig]:
    rig = DeviceRig(ring_size=RING_SIZE)
    yield rig
    rig.close()


def start_with_nothing_earned(rig: DeviceRig) -> None:
    """Starts a device whose guest has no allowance to spend first."""
    rig.spec = rig.spec._replace(earned=0.0)
    rig.start_ready()


def share_of_a_core(rig: DeviceRig, refill: Callable[[], None]) -> float:
    """The device's, over a second in which its guest is busy. A busy machine only lessens it."""
    before, began = cpu_s(rig.running.pid), time.monotonic()
    while time.monotonic() < began + 1:
        refill()
    return (cpu_s(rig.running.pid) - before) / (time.monotonic() - began)


def describe_loop(rig: DeviceRig, queue: BalloonQueue) -> None:
    """Every chain of this queue goes round and round its descriptors."""
    for index in range(RING_SIZE):
        rig.rings[queue].describe(index, 0, 0, VIRTQ_DESC_F_NEXT, (index + 1) % RING_SIZE)


def fill(rig: DeviceRig, queue: BalloonQueue, chains: int) -> None:
    """Offers descriptor 0 until so many chains wait."""
    ring = rig.rings[queue]
    while (ring.avail_idx - ring.used_idx) & 0xFFFF < chains:
        ring.offer(0)


@fault("hides loops and empty chains behind pages that a target asked for")
def test_flood_of_loops_beside_pages_that_were_asked_for_costs_little(rig: DeviceRig) -> None:
    start_with_nothing_earned(rig)
    # The first says where the balloon is, and asks for as little as was earned.
    rig.running.tube.send(Target(0))
    rig.running.tube.send(Target(rig.num_pages * PAGE_SIZE))
    describe_loop(rig, DEFLATEQ)
    one_page = rig.write_buffer(INFLATEQ, struct.pack("<I", 1))
    rig.rings[INFLATEQ].describe(0, *one_page)

    def refill() -> None:
        fill(rig, DEFLATEQ, RING_SIZE)
        fill(rig, INFLATEQ, 1)
        rig.kick(DEFLATEQ)

    assert share_of_a_core(rig, refill) < WASTE_SHARE


@fault("hides loops and empty chains behind pages that a target asked for")
def test_flood_of_loops_in_every_queue_costs_no_more_than_in_one(rig: DeviceRig) -> None:
    start_with_nothing_earned(rig)
    for queue in rig.rings:
        describe_loop(rig, queue)

    def refill() -> None:
        for queue in rig.rings:
            fill(rig, queue, RING_SIZE)
        rig.kick(DEFLATEQ)

    assert share_of_a_core(rig, refill) < WASTE_SHARE


@fault("chains or reports of thousands of parts, or of GiB")
def test_flood_of_the_longest_reports_costs_a_part_of_a_core(rig: DeviceRig) -> None:
    start_with_nothing_earned(rig)
    own = (rig.num_pages - DRIVER_PAGES) * PAGE_SIZE
    rig.rings[REPORTING_VQ].chain(range(RING_SIZE), [], [(0, own)] * MAX_PARTS)

    def refill() -> None:
        fill(rig, REPORTING_VQ, RING_SIZE)
        rig.kick(REPORTING_VQ)

    assert share_of_a_core(rig, refill) < 2 * UNASKED.share
    rig.inflate([1])


@fault("chains or reports of thousands of parts, or of GiB")
@pytest.mark.parametrize("queue", [INFLATEQ, DEFLATEQ, STATSQ])
def test_chain_of_too_many_parts_is_refused(rig: DeviceRig, queue: BalloonQueue) -> None:
    rig.start_ready()
    rig.offer(queue, [(0, 0)] * MAX_PARTS)
    rig.offer(queue, [(0, 0)] * (MAX_PARTS - 1), head=MAX_PARTS)
    rig.wait_progress(lambda progress: progress.buffers == 2)
    assert rig.of(Fault) == []
    rig.offer(queue, [(0, 0)] * (MAX_PARTS + 1))
    index = list(rig.rings).index(queue)
    refused = Fault(FaultKind.CHAIN, index, Rule.PARTS, 0, MAX_PARTS + 1, 0)
    assert rig.wait_report(Fault) == refused


@fault("chains or reports of thousands of parts, or of GiB")
def test_report_of_too_many_parts_or_too_much_is_refused(rig: DeviceRig) -> None:
    rig.start_ready()
    rig.offer(REPORTING_VQ, [], [(0, 0)] * (MAX_PARTS + 1))
    assert rig.wait_report(Fault).code == Rule.PARTS
    rig.offer(REPORTING_VQ, [], [(0, MAX_REPORT_BYTES // 2), (0, MAX_REPORT_BYTES // 2 + 1)])
    fault = rig.wait_report(Fault, 2)
    assert (fault.code, fault.detail) == (Rule.LIMIT, MAX_REPORT_BYTES + 1)
    assert rig.damaged() == set()


# --- a guest that has its device made anew over and over ---------------------------------------


@fault("resets its device over and over, for a new allowance each time")
def test_guest_that_has_earned_nothing_is_slowed_down_from_the_beginning(rig: DeviceRig) -> None:
    start_with_nothing_earned(rig)
    rig.rings[INFLATEQ].describe(0, *rig.write_buffer(INFLATEQ, struct.pack("<256I", *[1] * 256)))

    def refill() -> None:
        fill(rig, INFLATEQ, RING_SIZE)
        rig.kick(INFLATEQ)

    assert share_of_a_core(rig, refill) < 2 * UNASKED.share


def sent_through(spec: DeviceSpec) -> DeviceSpec:
    """What arrives of a spec, with the numbers that its descriptors have here."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    fds = [0, 1, *spec.fds()]
    with ours, theirs:
        send_request(ours, spec, 0, 1, 1, b"")
        request = receive_request(theirs, bytearray(MAX_DATAGRAM_BYTES))
    assert request is not None
    for fd in request.fds:
        os.close(fd)
    assert len(request.fds) == request.sent == len(fds)
    return decode_spec(request._replace(fds=fds))


def test_what_a_guest_has_earned_goes_through_the_template(rig: DeviceRig) -> None:
    spec = rig.spec._replace(earned=0.25)
    assert sent_through(spec) == spec


def test_regions_that_are_not_mapped_or_not_freed_go_through_the_template(rig: DeviceRig) -> None:
    (region,) = rig.spec.regions
    regions = (
        region,
        region._replace(guest_addr=GuestAddr(1 << 32), fd=None, freed=False),
        region._replace(guest_addr=GuestAddr(1 << 33), freed=False),
        region._replace(guest_addr=GuestAddr(1 << 44)),
    )
    spec = rig.spec._replace(regions=regions, pfns_name_pages=False)
    assert list(spec.fds())[:3] == [rig.fd] * 3
    assert sent_through(spec) == spec


@fault("resets its device over and over, for a new allowance each time")
@pytest.mark.parametrize(("since_s", "part"), [(0, 0), (15, 0.25), (60, 1), (600, 1)])
def test_guest_earns_its_allowances_within_a_minute_of_its_devices_beginning(
    since_s: float, part: float
) -> None:
    backend = Backend(MemoryTable(inspect))
    assert device_spec(backend, [], "vm1", since_s, None).earned == part
