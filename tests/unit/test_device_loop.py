"""How often a device speaks of faults, how long a turn of one queue lasts, and which one rests."""

import contextlib
import itertools
import os
from collections.abc import Iterator
from time import monotonic

import pytest

from balloon_daemon.device import loop
from balloon_daemon.device.balloon import (
    MAX_CHAINS_A_TURN,
    MAX_PFN_BYTES,
    BalloonDevice,
    RunningQueue,
)
from balloon_daemon.device.loop import FAULTS_A_SECOND, DeviceLoop, Reporter
from balloon_daemon.device.pace import MAX_TURN_S, Turn
from balloon_daemon.errors import NO_HEAD, GuestError, RingError, Rule
from balloon_daemon.tube.connection import ControllerEnd, DeviceEnd, open_tube
from balloon_daemon.tube.messages import Command, Fault, FaultKind
from balloon_daemon.units import PAGE_SIZE, FrontendAddr, GuestAddr
from balloon_daemon.virtio.balloon import BalloonQueue
from balloon_daemon.virtio.guest_memory import GuestMemory, MemoryRegion
from balloon_daemon.virtio.split_queue import (
    VIRTQ_DESC_F_INDIRECT,
    VIRTQ_DESC_F_WRITE,
    SplitQueue,
)
from tests.fakes.raw_ring import RawRing
from tests.fakes.recording_map import RecordingReclaimer
from tests.harness.faults import fault

# --- reports of faults ------------------------------------------------------------------------

Ends = tuple[ControllerEnd, DeviceEnd]


@pytest.fixture
def tube() -> Iterator[Ends]:
    upper, lower = open_tube()
    yield upper, lower
    upper.close()
    lower.close()


def test_reporter_says_four_faults_a_second_and_counts_the_rest(tube: Ends) -> None:
    now = [100.0]
    reporter = Reporter(tube[1], lambda: now[0])
    for number in range(10):
        reporter.fault(FaultKind.CHAIN, 0, Rule.PFN, number, 0)
    now[0] = 101.0
    reporter.fault(FaultKind.CHAIN, 0, Rule.PFN, 10, 0)
    reports = tube[0].receive() or []
    faults = [report for report in reports if isinstance(report, Fault)]
    assert [fault.head for fault in faults] == [*range(FAULTS_A_SECOND), 10]
    assert [fault.suppressed for fault in faults] == [0, 0, 0, 0, 6]


def test_reporter_never_leaves_out_that_a_ring_stopped(tube: Ends) -> None:
    reporter = Reporter(tube[1], lambda: 100.0)
    for _ in range(FAULTS_A_SECOND):
        reporter.fault(FaultKind.CHAIN, 0, Rule.PFN, 0, 0)
    reporter.fault(FaultKind.RING, 1, Rule.HEAD, NO_HEAD, 65535)
    assert (tube[0].receive() or [])[-1] == Fault(FaultKind.RING, 1, Rule.HEAD, NO_HEAD, 65535, 0)


def test_reporter_whose_report_found_no_room_counts_on(tube: Ends) -> None:
    upper, lower = tube
    seconds = itertools.count(100)
    reporter = Reporter(lower, lambda: next(seconds))
    reporter.fault(FaultKind.CHAIN, 0, Rule.PFN, 1, 0)
    while lower.send(Fault(FaultKind.CHAIN, 0, Rule.PFN, 2, 0, 0)):
        pass
    for _ in range(FAULTS_A_SECOND + 3):
        reporter.fault(FaultKind.CHAIN, 0, Rule.PFN, 3, 0)
    while upper.receive():
        pass
    reporter.fault(FaultKind.CHAIN, 0, Rule.PFN, 4, 0)
    (fault,) = upper.receive() or []
    assert isinstance(fault, Fault)
    assert (fault.head, fault.suppressed) == (4, FAULTS_A_SECOND + 3)


# --- a turn -----------------------------------------------------------------------------------


class Device:
    """A device of one queue, that nobody jailed and whose clock a test moves.

    Args:
        host_pages: 4 KiB pages in a host page of its 64.
    """

    def __init__(
        self,
        queue: BalloonQueue,
        size: int = 1024,
        host_pages: int = 1,
        *,
        frees_reported: bool = True,
    ) -> None:
        self.ring = RawRing.private(size)
        self.call = os.eventfd(0, os.EFD_NONBLOCK)
        self.running = RunningQueue(
            0, queue, SplitQueue(queue.value, size, *self.ring.areas), -1, self.call
        )
        self.rig = rig = RecordingReclaimer([(0, 64, host_pages)])
        self.faults: list[GuestError] = []
        self.now_s = 50.0
        self.step_s = 0.0
        self.ram = memoryview(bytearray(64 * PAGE_SIZE))
        region = MemoryRegion(GuestAddr(0), FrontendAddr(0), len(self.ram), self.ram)
        self.device = BalloonDevice(
            GuestMemory([region]),
            rig.reclaimer,
            [self.running],
            self.heard,
            self.clock,
            frees_reported=frees_reported,
        )

    def heard(self, _: RunningQueue, err: GuestError) -> None:
        self.faults.append(err)

    def clock(self) -> float:
        self.now_s += self.step_s
        return self.now_s

    def calls(self) -> int:
        """Whether the driver was called since the last look: 1 or 0."""
        try:
            return min(1, os.eventfd_read(self.call))
        except BlockingIOError:
            return 0


@pytest.fixture
def inflateq() -> Iterator[Device]:
    device = Device(BalloonQueue.INFLATEQ)
    yield device
    os.close(device.call)


def offer_empty(ring: RawRing, count: int) -> None:
    ring.describe(0, 0, 0)
    for _ in range(count):
        ring.offer(0)


@pytest.mark.parametrize(
    ("waiting", "served", "more"),
    [
        (0, 0, False),
        (1, 1, False),
        (MAX_CHAINS_A_TURN - 1, MAX_CHAINS_A_TURN - 1, False),
        (MAX_CHAINS_A_TURN, MAX_CHAINS_A_TURN, True),
        (1024, MAX_CHAINS_A_TURN, True),
    ],
)
def test_turn_serves_so_many_chains_at_most_and_calls_once(
    inflateq: Device, waiting: int, served: int, more: bool
) -> None:
    offer_empty(inflateq.ring, waiting)
    turn = inflateq.device.process(inflateq.running)
    assert turn == Turn(chains=served, more=more)
    assert inflateq.ring.used_idx == served
    assert inflateq.calls() == min(1, served)


def test_turn_ends_when_its_time_is_over(inflateq: Device) -> None:
    offer_empty(inflateq.ring, 100)
    inflateq.step_s = MAX_TURN_S / 3.5  # The fourth chain ends behind the limit.
    assert inflateq.device.process(inflateq.running) == Turn(chains=4, more=True)
    assert inflateq.ring.used_idx == 4
    assert inflateq.calls() == 1


def test_turn_with_a_ring_error_answers_what_it_served_before(inflateq: Device) -> None:
    offer_empty(inflateq.ring, 3)
    inflateq.ring.offer(1024)
    turn = inflateq.device.process(inflateq.running)
    assert (turn.chains, str(turn.broken)) == (3, str(RingError("inflateq", Rule.HEAD, 1024)))
    assert inflateq.ring.used_idx == 3
    assert inflateq.calls() == 1


def test_statistics_ring_that_lied_is_never_written_again() -> None:
    statsq = Device(BalloonQueue.STATSQ)
    offer_empty(statsq.ring, 1)
    statsq.ring.offer(1024)
    assert statsq.device.process(statsq.running).broken is not None
    statsq.device.request_stats()
    assert (statsq.ring.used_idx, statsq.calls()) == (0, 0)
    os.close(statsq.call)


def test_statistics_are_given_once_and_only_the_latest() -> None:
    statsq = Device(BalloonQueue.STATSQ)
    offer_empty(statsq.ring, 3)
    statsq.device.process(statsq.running)
    assert statsq.device.take_stats() == ()
    assert statsq.device.take_stats() is None
    # Two are answered, the latest is held.
    assert statsq.ring.used_idx == 2
    os.close(statsq.call)


def test_chains_that_break_rules_are_counted_and_answered(inflateq: Device) -> None:
    inflateq.ring.describe(0, 0, 0, VIRTQ_DESC_F_INDIRECT)
    for _ in range(5):
        inflateq.ring.offer(0)
    assert inflateq.device.process(inflateq.running) == Turn(chains=5, faults=5)
    assert [err.rule for err in inflateq.faults] == [Rule.INDIRECT] * 5
    statistics = inflateq.device.statistics()
    assert (statistics.faults, statistics.buffers, inflateq.ring.used_idx) == (5, 5, 5)


@fault("broken chain on the deflateq, of a guest on huge pages")
def test_deflation_that_breaks_a_rule_leaves_no_huge_page_to_be_completed() -> None:
    # It is answered, so what it named is in use again: page 7 may be, of 63 in the balloon.
    deflateq = Device(BalloonQueue.DEFLATEQ, host_pages=64)
    deflateq.rig.inflate(list(range(63)))
    deflateq.ring.describe(0, 0, MAX_PFN_BYTES + 4)
    deflateq.ring.offer(0)
    deflateq.device.process(deflateq.running)
    assert [err.rule for err in deflateq.faults] == [Rule.LIMIT]
    deflateq.rig.inflate([63])
    assert deflateq.rig.take_removed() == []
    deflateq.rig.inflate(list(range(64)))
    assert deflateq.rig.take_removed() == list(range(64))
    os.close(deflateq.call)


# --- what a turn brought ----------------------------------------------------------------------


def offer_pfns(device: Device, pfns: list[int]) -> None:
    """Offers page frame numbers, written into page 0."""
    content = b"".join(pfn.to_bytes(4, "little") for pfn in pfns)
    device.ram[: len(content)] = content
    device.ring.describe(0, 0, len(content))
    device.ring.offer(0)


@pytest.mark.parametrize("queue", [BalloonQueue.INFLATEQ, BalloonQueue.DEFLATEQ])
def test_turn_says_how_many_pages_moved(queue: BalloonQueue) -> None:
    device = Device(queue)
    for pfns in ([1, 2, 3], [10]):
        offer_pfns(device, pfns)
        assert device.device.process(device.running) == Turn(chains=1, pages=len(pfns))
    assert device.device.process(device.running) == Turn()
    os.close(device.call)


def test_turn_of_pages_that_are_not_the_guests_moved_none(inflateq: Device) -> None:
    offer_pfns(inflateq, [1, 64])
    assert inflateq.device.process(inflateq.running) == Turn(chains=1, faults=1)
    assert inflateq.device.statistics().foreign_pages == 2


def test_turn_of_reports_says_so_and_adds_parts_of_pages_up() -> None:
    reports = Device(BalloonQueue.REPORTING_VQ)
    for length, pages in ((8192, 2), (1, 1), (1, 0), (4095, 1)):
        reports.ring.describe(0, 4096, length, VIRTQ_DESC_F_WRITE)
        reports.ring.offer(0)
        turn = reports.device.process(reports.running)
        assert turn == Turn(chains=1, pages=pages, reports=True)
    os.close(reports.call)


def test_turn_of_reports_whose_pages_stay_answers_and_moves_none() -> None:
    reports = Device(BalloonQueue.REPORTING_VQ, frees_reported=False)
    # The second one breaks a rule, which counts for nothing where nothing is removed.
    for head, length in ((0, 8192), (1, 1 << 31)):
        reports.ring.describe(head, 4096, length, VIRTQ_DESC_F_WRITE)
        reports.ring.offer(head)
    turn = reports.device.process(reports.running)
    assert turn == Turn(chains=2, reports=True)
    assert reports.rig.take_removed() == []
    assert (reports.device.statistics().reported_bytes, reports.calls()) == (0, 1)
    os.close(reports.call)


# --- rests ------------------------------------------------------------------------------------


class CountingDevice(BalloonDevice):
    """A device that counts how often its queues are looked at."""

    looks = 0

    def process(self, running: RunningQueue) -> Turn:
        self.looks += 1
        return super().process(running)


class Loop:
    """A DeviceLoop in this process over an inflateq and a deflateq, whose clock a test moves.

    Its guest has no allowances left: a kick without work has its queue rest until the test moves
    the clock.
    """

    def __init__(self, tube: Ends) -> None:
        self.controller = tube[0]
        self.now_s = 100.0
        self.inflateq, self.deflateq = Device(BalloonQueue.INFLATEQ), Device(BalloonQueue.DEFLATEQ)
        # A pipe takes eight bytes for a kick, too, and its other end can hang up.
        self.kicks = [os.pipe2(os.O_NONBLOCK) for _ in range(2)]
        both = [self.inflateq.running, self.deflateq.running]
        for running, (reading, _) in zip(both, self.kicks, strict=True):
            running.kick_fd = reading
        rig = RecordingReclaimer([(0, 64, 1)])
        self.device = CountingDevice(rig.memory, rig.reclaimer, both, lambda *_: None)
        self.loop = DeviceLoop(
            self.device, tube[1], Reporter(tube[1]), None, b"", 0.0, lambda: self.now_s
        )
        self.turns(2)  # Every device looks at its rings once by itself.

    def close(self) -> None:
        for device in (self.inflateq, self.deflateq):
            os.close(device.call)
        for ends in self.kicks:
            for fd in ends:
                with contextlib.suppress(OSError):
                    os.close(fd)

    def kick(self, device: Device) -> None:
        """Kicks, as the driver does."""
        writing = dict(self.kicks)[device.running.kick_fd]
        os.write(writing, bytes(8))

    def rest(self, *devices: Device) -> None:
        """Has their queues rest: each is kicked and has nothing to do."""
        for device in devices:
            self.kick(device)
        self.turns(1)

    def turns(self, most: int) -> None:
        """Lets it do what there is to do, and no more: a tick in the tube ends each wait."""
        for _ in range(most):
            self.controller.send(Command.REQUEST_STATS)
            assert self.loop.turn()


@pytest.fixture
def two_queues(tube: Ends) -> Iterator[Loop]:
    loop = Loop(tube)
    yield loop
    loop.close()


@fault("floods with kicks without work, or with loops")
def test_queue_that_rests_is_not_looked_at_and_holds_up_no_other(two_queues: Loop) -> None:
    inflateq, deflateq = two_queues.inflateq, two_queues.deflateq
    two_queues.rest(deflateq)
    for device in (inflateq, deflateq):
        offer_empty(device.ring, 1)
        two_queues.kick(device)
    two_queues.turns(3)
    assert (inflateq.ring.used_idx, deflateq.ring.used_idx) == (1, 0)


def test_queue_that_has_rested_is_looked_at_without_a_kick(two_queues: Loop) -> None:
    deflateq = two_queues.deflateq
    two_queues.rest(deflateq)
    # Another vring with the same eventfd may have taken its kick meanwhile.
    offer_empty(deflateq.ring, 1)
    two_queues.now_s += 60
    two_queues.turns(1)
    assert deflateq.ring.used_idx == 1


@fault("floods with kicks without work, or with loops")
def test_stop_comes_through_at_once_while_queues_rest(two_queues: Loop) -> None:
    two_queues.rest(two_queues.inflateq, two_queues.deflateq)
    two_queues.controller.send(Command.STOP)
    began = monotonic()
    assert two_queues.loop.turn() is False
    assert monotonic() - began < 30


def test_kick_that_hangs_up_while_its_queue_rests_is_dropped(two_queues: Loop) -> None:
    deflateq = two_queues.deflateq
    two_queues.rest(deflateq)
    os.close(dict(two_queues.kicks)[deflateq.running.kick_fd])
    two_queues.turns(2)
    assert deflateq.running.kick_fd not in two_queues.loop.fds()
    looks = two_queues.device.looks
    two_queues.now_s += 60
    two_queues.turns(2)
    assert two_queues.device.looks == looks


class Claims(BalloonDevice):
    """A device whose VMM says that the guest has 16 TiB."""

    memory_pages = (16 << 40) // PAGE_SIZE


@fault("VMM claims far more memory for its guest than the host has")
def test_guest_of_16_tib_is_granted_no_more_work_than_the_host_has_pages(
    tube: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "HOST_PAGES", 100 * 256)
    rig = RecordingReclaimer([(0, 64, 1)])
    device = Claims(rig.memory, rig.reclaimer, [], lambda *_: None)
    account = DeviceLoop(device, tube[1], Reporter(tube[1]), None, b"")._account
    account.target(Claims.memory_pages)
    turn = Turn(chains=1, pages=256)
    rests_s = [account.charge(100 + number / 100, MAX_TURN_S, turn) for number in range(400)]
    assert not any(rests_s[:100])
    assert sum(map(bool, rests_s[100:])) > 100
