"""A hostile guest: what a jailed device says of each fault, and that it goes on."""

import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from balloon_daemon.device import pace
from balloon_daemon.device.balloon import MAX_CHAINS_A_TURN
from balloon_daemon.device.pace import UNASKED, WASTE
from balloon_daemon.errors import NO_HEAD, Rule
from balloon_daemon.tube.messages import Fault, FaultKind
from balloon_daemon.units import FrontendAddr
from balloon_daemon.virtio.balloon import STAT_ENTRY, BalloonQueue
from balloon_daemon.virtio.split_queue import (
    VIRTQ_DESC_F_INDIRECT,
    VIRTQ_DESC_F_NEXT,
    VIRTQ_DESC_F_WRITE,
)
from tests.harness.device_rig import FRONTEND_BASE, RING_SIZE, DeviceRig
from tests.harness.faults import fault
from tests.harness.makers import MakeRig
from tests.harness.short_host import cpu_s, is_asleep
from tests.harness.waiting import wait_until

INFLATEQ, DEFLATEQ, STATSQ, _, REPORTING_VQ = BalloonQueue
NEXT, WRITE, INDIRECT = VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE, VIRTQ_DESC_F_INDIRECT
OUTSIDE = 1024 * 4096
"""The first address behind the rig's memory."""
HUGE_PAGE = 2 << 20


def assert_alive(rig: DeviceRig, damaged: set[int]) -> None:
    """The device serves honest buffers and ends in order; nothing else was removed."""
    for queue in (DEFLATEQ, INFLATEQ):
        rig.offer_pfns(queue, [900], slot=9)
        assert rig.wait_used(queue) == [9]
    rig.stop()
    assert rig.damaged() == damaged | {900}


# --- chains that break a rule: dropped, answered, reported ------------------------------------

Descriptors = list[tuple[int, int, int, int]]
CHAINS: list[tuple[Rule, int, BalloonQueue, Descriptors]] = [
    (Rule.INDIRECT, 0, INFLATEQ, [(0, 16, INDIRECT, 0)]),
    (Rule.INDIRECT, 0, REPORTING_VQ, [(0, 16, INDIRECT | WRITE, 0)]),
    (Rule.ORDER, 0, INFLATEQ, [(0, 4, WRITE | NEXT, 1), (0, 4, 0, 0)]),
    (Rule.NEXT, RING_SIZE, INFLATEQ, [(0, 4, NEXT, RING_SIZE)]),
    (Rule.NEXT, 65535, STATSQ, [(0, 4, NEXT, 65535)]),
    (Rule.LOOP, RING_SIZE, INFLATEQ, [(0, 4, NEXT, 0)]),
    (Rule.LOOP, RING_SIZE, DEFLATEQ, [(0, 0, NEXT, 1), (0, 0, NEXT, 0)]),
    (Rule.DIRECTION, 1, INFLATEQ, [(0, 4, WRITE, 0)]),
    (Rule.DIRECTION, 1, DEFLATEQ, [(0, 4, NEXT, 1), (0, 4, WRITE, 0)]),
    (Rule.DIRECTION, 2, REPORTING_VQ, [(0, 4096, NEXT, 1), (0, 4096, 0, 0)]),
    (Rule.DIRECTION, 1, REPORTING_VQ, [(0, 4096, NEXT, 1), (4096, 4096, WRITE, 0)]),
    (Rule.LENGTH, 3, INFLATEQ, [(0, 3, 0, 0)]),
    (Rule.LENGTH, 5, DEFLATEQ, [(0, 4, NEXT, 1), (0, 1, 0, 0)]),
    (Rule.LIMIT, 65540, INFLATEQ, [(0, 65540, 0, 0)]),
    (Rule.LIMIT, 2 * (2**32 - 1), INFLATEQ, [(0, 2**32 - 1, NEXT, 1), (0, 2**32 - 1, 0, 0)]),
    (Rule.LIMIT, 641, STATSQ, [(0, 641, 0, 0)]),
    (Rule.ADDRESS, OUTSIDE, INFLATEQ, [(OUTSIDE, 4, 0, 0)]),
    (Rule.ADDRESS, OUTSIDE - 2, DEFLATEQ, [(OUTSIDE - 2, 4, 0, 0)]),
    (Rule.ADDRESS, 2**64 - 4, INFLATEQ, [(2**64 - 4, 4, 0, 0)]),
    (Rule.ADDRESS, 2**64 - 1, STATSQ, [(2**64 - 1, 10, 0, 0)]),
    (Rule.ADDRESS, OUTSIDE - 4096, REPORTING_VQ, [(OUTSIDE - 4096, 4097, WRITE, 0)]),
    (Rule.ADDRESS, OUTSIDE, REPORTING_VQ, [(0, 4096, WRITE | NEXT, 1), (OUTSIDE, 1, WRITE, 0)]),
]


@fault("broken chain: loop")
@pytest.mark.parametrize(
    ("rule", "found", "queue", "descriptors"),
    CHAINS,
    ids=[f"{rule.name}-{queue.value}" for rule, _, queue, _ in CHAINS],
)
def test_chain_that_breaks_a_rule_is_answered_reported_and_removes_nothing(
    rig: DeviceRig, rule: Rule, found: int, queue: BalloonQueue, descriptors: Descriptors
) -> None:
    rig.start_ready()
    for index, descriptor in enumerate(descriptors):
        rig.rings[queue].describe(index, *descriptor)
    rig.rings[queue].offer(0)
    rig.kick(queue)
    assert rig.wait_used(queue) == [0]
    index = list(rig.rings).index(queue)
    assert rig.wait_report(Fault) == Fault(FaultKind.CHAIN, index, rule, 0, found, 0)
    assert_alive(rig, damaged=set())


@fault("PFN outside memory, among good ones")
@pytest.mark.parametrize("queue", [INFLATEQ, DEFLATEQ])
@pytest.mark.parametrize("outside", [1024, 0x10_0000, 2**32 - 1])
def test_pfn_outside_memory_drops_the_whole_chain(
    rig: DeviceRig, queue: BalloonQueue, outside: int
) -> None:
    rig.start_ready()
    rig.offer_pfns(queue, [3, outside, 4])
    assert rig.wait_used(queue) == [0]
    fault = rig.wait_report(Fault)
    assert (fault.kind, fault.code, fault.detail) == (FaultKind.CHAIN, Rule.PFN, outside)
    assert_alive(rig, damaged=set())


@fault("same page over and over")
def test_inflate_of_the_same_page_over_and_over_removes_it_once(rig: DeviceRig) -> None:
    rig.start_ready()
    rig.inflate([5] * 256)
    rig.inflate([5, 6, 5, 6])
    assert rig.wait_progress(lambda progress: progress.buffers == 2).removals == 2
    assert_alive(rig, damaged={5, 6})


@fault("same page over and over")
def test_deflate_of_pages_never_inflated_is_answered_and_changes_nothing(rig: DeviceRig) -> None:
    rig.start_ready()
    rig.inflate([5])
    rig.offer_pfns(DEFLATEQ, [3, 4, 6, 700])
    assert rig.wait_used(DEFLATEQ) == [0]
    rig.inflate([6])
    progress = rig.wait_progress(lambda progress: progress.buffers == 3)
    assert (progress.deflated_pages, progress.removals, progress.faults) == (4, 2, 0)
    assert rig.of(Fault) == []
    assert_alive(rig, damaged={5, 6})


@fault("same page over and over")
def test_deflate_of_parts_never_inflated_completes_no_huge_page(rig: DeviceRig) -> None:
    (region,) = rig.spec.regions
    rig.spec = rig.spec._replace(regions=(region._replace(page_bytes=HUGE_PAGE),))
    rig.start_ready()
    rig.offer_pfns(DEFLATEQ, [3, 700])
    assert rig.wait_used(DEFLATEQ) == [0]
    parts = range(HUGE_PAGE // 4096)
    rig.inflate([part for part in parts if part != 3])
    # All but one are in the balloon: none of them may go, nor be forgotten.
    assert rig.damaged() == set()
    rig.inflate([3])
    progress = rig.wait_progress(lambda progress: progress.buffers == 3)
    assert (progress.deflated_pages, progress.removals, progress.faults) == (2, 1, 0)
    rig.stop()
    assert rig.of(Fault) == []
    assert rig.damaged() == set(parts)


@fault("same page over and over")
def test_empty_chains_of_every_queue_are_answered(rig: DeviceRig) -> None:
    rig.start_ready()
    for queue in (INFLATEQ, DEFLATEQ):
        rig.offer(queue, [(0, 0)])
        assert rig.wait_used(queue) == [0]
    rig.offer(REPORTING_VQ, [], [(0, 0)])
    assert rig.wait_used(REPORTING_VQ) == [0]
    rig.offer(STATSQ, [(0, 0)])
    rig.wait_progress(lambda progress: progress.buffers == 4)
    assert_alive(rig, damaged=set())


@fault("breaks a rule in the statsq while its buffer is held")
def test_broken_statistics_buffer_gives_the_held_one_back_first(rig: DeviceRig) -> None:
    # used.idx alone says where we are, so answers keep the order in which chains were taken.
    rig.start_ready()
    rig.offer(STATSQ, [rig.write_buffer(STATSQ, STAT_ENTRY.pack(4, 1))], head=3)
    rig.rings[STATSQ].describe(5, 0, 16, INDIRECT)
    rig.rings[STATSQ].offer(5)
    rig.kick(STATSQ)
    assert rig.wait_used(STATSQ, 2) == [3, 5]


@fault("broken chain: loop")
def test_faults_are_reported_at_a_limited_rate_and_all_counted(rig: DeviceRig) -> None:
    began = time.monotonic()
    rig.start_ready()
    rig.rings[INFLATEQ].describe(0, 0, 16, INDIRECT)
    for _ in range(10):
        for _ in range(RING_SIZE):
            rig.rings[INFLATEQ].offer(0)
        rig.kick(INFLATEQ)
        rig.wait_used(INFLATEQ, RING_SIZE)
    rig.wait_progress(lambda progress: progress.faults == 10 * RING_SIZE)
    # Four in each second of the clock, of which the test touches the first and the last in part.
    touched = int(time.monotonic() - began) + 2
    assert 1 <= len(rig.of(Fault)) <= 4 * touched
    assert_alive(rig, damaged=set())


# --- rings that cannot be trusted: that queue stops, the others go on -------------------------


@fault("avail index jumps, head out of range")
@pytest.mark.parametrize(
    ("rule", "found", "avail_idx", "head"),
    [
        (Rule.AVAIL_IDX, RING_SIZE + 1, RING_SIZE + 1, 0),
        (Rule.AVAIL_IDX, 65535, 65535, 0),
        (Rule.HEAD, RING_SIZE, 1, RING_SIZE),
        (Rule.HEAD, 65535, 1, 65535),
    ],
)
def test_ring_that_lies_stops_and_the_others_go_on(
    rig: DeviceRig, rule: Rule, found: int, avail_idx: int, head: int
) -> None:
    rig.start_ready()
    ring = rig.rings[DEFLATEQ]
    # In one step: a new device looks at its rings without a kick, and may do so right now.
    ring.place(head)
    ring.avail_idx = avail_idx
    rig.kick(DEFLATEQ)
    assert rig.wait_report(Fault) == Fault(FaultKind.RING, 1, rule, NO_HEAD, found, 0)
    # Even an honest ring is not looked at again.
    ring.avail_idx = ring.used_idx
    rig.offer_pfns(DEFLATEQ, [1])
    rig.inflate([2])
    assert ring.used_idx == 0
    rig.stop()
    assert rig.damaged() == {2}


@fault("avail index jumps, head out of range")
def test_ring_that_lies_behind_a_backlog_is_reported_once(make_rig: MakeRig) -> None:
    # A turn's worth waits before the head that cannot be, so the queue is in the backlog when a
    # kick leads to the lie: it was dropped there and once more from the backlog, which ended the
    # device.
    rig = make_rig(ring_size=512)
    ring = rig.rings[DEFLATEQ]
    ring.describe(0, 0, 0)
    for _ in range(MAX_CHAINS_A_TURN):
        ring.offer(0)
    ring.offer(512)
    rig.kick(DEFLATEQ)
    rig.start_ready()
    fault = rig.wait_report(Fault)
    assert (fault.kind, fault.code) == (FaultKind.RING, Rule.HEAD)
    rig.inflate([2])
    rig.stop()
    assert rig.of(Fault) == [fault]
    assert ring.used_idx == MAX_CHAINS_A_TURN


@fault("avail index jumps, head out of range")
def test_ring_that_lies_is_reported_though_faults_are_many(rig: DeviceRig) -> None:
    rig.start_ready()
    rig.rings[INFLATEQ].describe(0, 0, 16, INDIRECT)
    for _ in range(RING_SIZE):
        rig.rings[INFLATEQ].offer(0)
    rig.kick(INFLATEQ)
    rig.wait_used(INFLATEQ, RING_SIZE)
    rig.rings[INFLATEQ].offer(65535)
    rig.kick(INFLATEQ)
    rig.wait_progress(lambda progress: any(f.kind is FaultKind.RING for f in rig.of(Fault)))


@fault("ring outside memory")
@pytest.mark.parametrize(
    "where",
    [0, FRONTEND_BASE - 16, FRONTEND_BASE + 1024 * 4096, 2**64 - 16],
    ids=["zero", "before", "behind", "end"],
)
def test_ring_outside_memory_is_reported_and_the_others_are_served(
    rig: DeviceRig, where: int
) -> None:
    rig.change_vring(DEFLATEQ, descriptors=FrontendAddr(where))
    rig.start_ready()
    fault = rig.wait_report(Fault)
    assert (fault.kind, fault.queue, fault.code) == (FaultKind.RING, 1, Rule.RING)
    assert fault.detail == where
    rig.inflate([2])
    assert rig.damaged() == {2}


@fault("gives away the pages of its own rings")
def test_ring_that_the_guest_gave_away_stops_and_the_others_go_on(rig: DeviceRig) -> None:
    # The guest hands over the pages of its own deflateq: they read as zeros from then on.
    rig.rings[DEFLATEQ].start_at(1000)
    rig.start_ready()
    page = (rig.spec.vrings[1].descriptors - FRONTEND_BASE) // 4096
    rig.inflate([page, page + 1])
    rig.kick(DEFLATEQ)
    fault = rig.wait_report(Fault)
    assert (fault.queue, fault.code, fault.detail) == (1, Rule.AVAIL_IDX, (0 - 1000) % 65536)
    rig.inflate([2])
    assert rig.damaged() == {2}


# --- floods: a guest that keeps the device busy for nothing is slowed down --------------------


def flood(rig: DeviceRig, once: Callable[[], None], seconds: float = 1.0) -> float:
    """Does something over and over in a new device's first second, for which nothing was earned.

    Returns:
        What share of a core the device takes meanwhile. A busy machine only makes it less.
    """
    rig.spec = rig.spec._replace(earned=0.0)
    pid = rig.start_ready().pid
    before, began = cpu_s(pid), time.monotonic()
    while time.monotonic() < began + seconds:
        once()
    return (cpu_s(pid) - before) / (time.monotonic() - began)


def kick_and_look(rig: DeviceRig, queue: BalloonQueue) -> bool:
    """Whether a device sleeps on though a kick waits for it: a kick wakes one that listens."""
    rig.kick(queue)
    asleep = is_asleep(rig.running.pid)
    info = Path(f"/proc/self/fdinfo/{rig.kicks[queue]}").read_text()
    (count,) = (line.split()[1] for line in info.splitlines() if line.startswith("eventfd-count:"))
    return asleep and int(count, 16) > 0


@fault("floods with kicks without work, or with loops")
def test_flood_of_kicks_without_work_costs_little_and_honest_work_goes_on(
    rig: DeviceRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each wake-up is charged, and its queue rests for 20 times as long (test_device_pace.py).
    # What it is taken to cost in truth makes that 0.4 ms, too short to be looked at.
    monkeypatch.setattr(pace, "WAKE_UP_S", 0.02)
    rig.spec = rig.spec._replace(earned=0.0)
    rig.start_ready()
    tube = rig.running.tube.fileno()
    wait_until(lambda: kick_and_look(rig, INFLATEQ), what="it lets a kick wait", woken_by=tube)
    rig.inflate([1])
    assert rig.damaged() == {1}


@fault("floods with kicks without work, or with loops")
def test_flood_of_loops_costs_little_and_honest_work_goes_on(make_rig: MakeRig) -> None:
    rig = make_rig(ring_size=512)
    ring = rig.rings[DEFLATEQ]
    for index in range(512):
        ring.describe(index, 0, 0, NEXT, (index + 1) % 512)

    def refill() -> None:
        while (ring.avail_idx - ring.used_idx) & 0xFFFF < 512:
            ring.offer(0)
        rig.kick(DEFLATEQ)

    # Without a pace the device takes all that the machine has left: 0.5 to 0.7 beside this test.
    assert flood(rig, refill) < 4 * WASTE.share
    rig.inflate([1])
    assert rig.damaged() == {1}


@fault("inflates, deflates or reports the same pages for ever, in valid chains")
def test_flood_of_valid_chains_that_nobody_asked_for_costs_a_part_of_a_core(
    make_rig: MakeRig,
) -> None:
    rig = make_rig(ring_size=512)
    ring = rig.rings[INFLATEQ]
    pfns = struct.pack("<256I", *[1] * 256)
    for index in range(512):
        ring.describe(index, *rig.write_buffer(INFLATEQ, pfns), 0, 0)

    def refill() -> None:
        while (ring.avail_idx - ring.used_idx) & 0xFFFF < 512:
            ring.offer(ring.avail_idx % 512)
        rig.kick(INFLATEQ)

    # Without a pace it would be 0.7 or more.
    assert flood(rig, refill) < 2 * UNASKED.share
