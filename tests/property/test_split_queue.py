"""SplitQueue against a model driver: any ring, any start, any chains, any garbage."""

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from balloon_daemon.errors import GuestError, RingError
from balloon_daemon.virtio.split_queue import DescriptorChain, SplitQueue
from tests.fakes.raw_ring import RawRing

SIZES = st.sampled_from([1 << n for n in range(16)])
PARTS = st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1))


@dataclass
class Offered:
    """A chain that the model driver made available and has not got back."""

    descriptors: list[int]
    chain: DescriptorChain
    taken: bool = field(default=False)


class DriverAndDevice(RuleBasedStateMachine):
    """A rightful driver on one side, a device that may be replaced at any time on the other."""

    @initialize(log_size=st.integers(0, 8), start=st.integers(0, 65535))
    def connect(self, log_size: int, start: int) -> None:
        size = 1 << log_size
        self.ring = RawRing.private(size)
        self.ring.start_at(start)
        self.queue = SplitQueue("inflateq", size, *self.ring.areas)
        self.free = list(range(size))
        self.offered: list[Offered] = []
        self.answered = 0
        self.start = start

    @precondition(lambda self: self.free)
    @rule(data=st.data())
    def offer(self, data: st.DataObject) -> None:
        length = data.draw(st.integers(1, min(len(self.free), 12)))
        indices = data.draw(st.permutations(self.free).map(lambda order: order[:length]))
        readable = data.draw(st.lists(PARTS, max_size=length))
        writable = data.draw(st.lists(PARTS, min_size=1, max_size=length))
        writable = writable[: length - len(readable)]
        parts = len(readable) + len(writable)
        head = self.ring.chain(indices[:parts], readable, writable)
        self.ring.offer(head)
        self.free = [index for index in self.free if index not in indices[:parts]]
        self.offered.append(Offered(indices[:parts], DescriptorChain(head, readable, writable)))

    @precondition(lambda self: any(not each.taken for each in self.offered))
    @rule()
    def take(self) -> None:
        waiting = [each for each in self.offered if not each.taken]
        assert self.queue.pop() == waiting[0].chain
        waiting[0].taken = True

    @precondition(lambda self: any(each.taken for each in self.offered))
    @rule(written=st.integers(0, 2**32 - 1))
    def answer(self, written: int) -> None:
        done = self.offered.pop(0)
        self.queue.push(done.chain.head, written)
        self.answered += 1
        assert self.ring.collect() == [(done.chain.head, written)]
        self.free += done.descriptors

    @rule()
    def replace_the_device(self) -> None:
        self.queue = SplitQueue("inflateq", self.ring.size, *self.ring.areas)
        for each in self.offered:
            each.taken = False

    @invariant()
    def indices_agree(self) -> None:
        assert self.queue.pending() == sum(not each.taken for each in self.offered)
        assert self.queue.used_index == (self.start + self.answered) % 65536


DriverAndDevice.TestCase.settings = settings(max_examples=25, stateful_step_count=30)
test_queue_of_a_rightful_driver_loses_and_repeats_nothing = DriverAndDevice.TestCase


@settings(max_examples=60)
@given(st.integers(0, 6), st.integers(0, 65535), st.data())
def test_queue_of_garbage_takes_each_entry_at_most_once_and_ends(
    log_size: int, start: int, data: st.DataObject
) -> None:
    size = 1 << log_size
    ring = RawRing.private(size)
    for area in ring.areas:
        area[:] = data.draw(st.binary(min_size=len(area), max_size=len(area)))
    ring.used_idx = start
    queue = SplitQueue("inflateq", size, *ring.areas)
    taken = 0
    try:
        while queue.pending():
            try:
                chain = queue.pop()
                assert 1 <= len(chain.readable) + len(chain.writable) <= size
                head = chain.head
            except RingError:
                raise
            except GuestError as err:
                head = err.head
            taken += 1
            assert head < size
            queue.push(head)
    except RingError:
        pass
    assert taken <= size
    assert queue.used_index == (start + taken) % 65536


@settings(max_examples=30)
@given(SIZES, st.integers(0, 65535), st.integers(0, 65535))
def test_pending_allows_every_distance_up_to_the_size_and_no_other(
    size: int, start: int, distance: int
) -> None:
    ring = RawRing.private(size)
    ring.start_at(start)
    queue = SplitQueue("inflateq", size, *ring.areas)
    ring.avail_idx = start + distance
    try:
        outcome = ("fits", queue.pending())
    except RingError as err:
        outcome = ("jumped", err.found)
    assert outcome == ("fits" if distance <= size else "jumped", distance)
