"""The device's side of a split virtqueue: what it takes, what it refuses, what it answers."""

import pytest

from balloon_daemon.errors import NO_HEAD, GuestError, RingError, Rule, StateError
from balloon_daemon.virtio.split_queue import (
    USED_ELEMENT,
    VIRTQ_AVAIL_F_NO_INTERRUPT,
    VIRTQ_DESC_F_INDIRECT,
    VIRTQ_DESC_F_NEXT,
    VIRTQ_DESC_F_WRITE,
    DescriptorChain,
    SplitQueue,
    available_bytes,
    descriptors_bytes,
    used_bytes,
)
from tests.fakes.raw_ring import RawRing

ALL_SIZES = [1 << n for n in range(16)]
"""Every size that a split virtqueue may have, 1 to 32768."""


def queue_of(ring: RawRing) -> SplitQueue:
    return SplitQueue("inflateq", ring.size, *ring.areas)


@pytest.mark.parametrize("size", ALL_SIZES)
def test_area_lengths_are_those_of_the_specification(size: int) -> None:
    # virtio 1.3, 2.7: 16 × size, 6 + 2 × size, 6 + 8 × size; without the two event fields.
    assert descriptors_bytes(size) == 16 * size
    assert available_bytes(size) == 4 + 2 * size
    assert used_bytes(size) == 4 + 8 * size


@pytest.mark.parametrize("size", [-1, 0, 3, 100, 32767, 65536])
def test_queue_size_that_is_not_allowed_is_refused(size: int) -> None:
    with pytest.raises(StateError, match=f"queue size {size}"):
        SplitQueue("inflateq", size, *RawRing.private(4).areas)


@pytest.mark.parametrize("area", [0, 1, 2])
def test_queue_area_one_byte_short_is_refused(area: int) -> None:
    areas = list(RawRing.private(4).areas)
    areas[area] = areas[area][:-1]
    with pytest.raises(StateError, match="lengths of its size"):
        SplitQueue("inflateq", 4, *areas)


@pytest.mark.parametrize("size", ALL_SIZES)
def test_pop_gives_the_chain_of_the_last_descriptor(size: int) -> None:
    ring = RawRing.private(size)
    queue = queue_of(ring)
    ring.offer(ring.chain([size - 1], [(0x1234_5678_9ABC, 1024)]))
    assert queue.pending() == 1
    assert queue.pop() == DescriptorChain(size - 1, [(0x1234_5678_9ABC, 1024)], [])
    assert queue.pending() == 0


def test_pop_chain_of_readable_and_writable_parts_keeps_their_order() -> None:
    ring = RawRing.private(8)
    queue = queue_of(ring)
    ring.offer(ring.chain([5, 0, 7, 2], [(1, 10), (2, 20)], [(3, 30), (4, 0)]))
    assert queue.pop() == DescriptorChain(5, [(1, 10), (2, 20)], [(3, 30), (4, 0)])


def test_pop_chain_as_long_as_its_queue_is_whole() -> None:
    ring = RawRing.private(8)
    queue = queue_of(ring)
    parts = [(0x1000 * n, n) for n in range(8)]
    ring.offer(ring.chain([3, 1, 4, 0, 5, 7, 2, 6], parts))
    assert queue.pop().readable == parts


@pytest.mark.parametrize("extra_flags", [0, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE])
def test_pop_indirect_descriptor_is_a_guest_error(extra_flags: int) -> None:
    ring = RawRing.private(4)
    queue = queue_of(ring)
    ring.describe(2, 0x1000, 16, VIRTQ_DESC_F_INDIRECT | extra_flags, 2)
    ring.offer(2)
    with pytest.raises(GuestError, match="chain 2 is indirect") as caught:
        queue.pop()
    assert (caught.value.head, caught.value.rule) == (2, Rule.INDIRECT)


def test_pop_readable_part_after_a_writable_one_is_a_guest_error() -> None:
    ring = RawRing.private(4)
    queue = queue_of(ring)
    ring.describe(0, 0x1000, 16, VIRTQ_DESC_F_WRITE | VIRTQ_DESC_F_NEXT, 1)
    ring.describe(1, 0x2000, 16)
    ring.offer(0)
    with pytest.raises(GuestError) as caught:
        queue.pop()
    assert caught.value.rule is Rule.ORDER


@pytest.mark.parametrize("following", [4, 5, 65535])
def test_pop_next_beyond_the_table_is_a_guest_error(following: int) -> None:
    ring = RawRing.private(4)
    queue = queue_of(ring)
    ring.describe(1, 0x1000, 16, VIRTQ_DESC_F_NEXT, following)
    ring.offer(1)
    with pytest.raises(GuestError) as caught:
        queue.pop()
    assert (caught.value.rule, caught.value.found) == (Rule.NEXT, following)


@pytest.mark.parametrize("size", [1, 2, 4, 512])
def test_pop_chain_that_loops_is_a_guest_error(size: int) -> None:
    ring = RawRing.private(size)
    queue = queue_of(ring)
    for index in range(size):
        ring.describe(index, 0x1000, 16, VIRTQ_DESC_F_NEXT, (index + 1) % size)
    ring.offer(0)
    with pytest.raises(GuestError) as caught:
        queue.pop()
    assert (caught.value.rule, caught.value.found) == (Rule.LOOP, size)


def test_pop_after_a_guest_error_goes_on_with_the_next_chain() -> None:
    ring = RawRing.private(4)
    queue = queue_of(ring)
    ring.describe(0, 0, 16, VIRTQ_DESC_F_INDIRECT)
    ring.offer(0)
    ring.offer(ring.chain([1], [(0x1000, 4)]))
    with pytest.raises(GuestError) as caught:
        queue.pop()
    queue.push(caught.value.head)
    queue.push(queue.pop().head)
    assert ring.collect() == [(0, 0), (1, 0)]


@pytest.mark.parametrize("head", [4, 5, 65535])
def test_pop_head_beyond_the_table_is_a_ring_error_and_takes_nothing(head: int) -> None:
    ring = RawRing.private(4)
    queue = queue_of(ring)
    ring.offer(head)
    with pytest.raises(RingError, match=f"head {head} ") as caught:
        queue.pop()
    assert (caught.value.head, caught.value.rule) == (NO_HEAD, Rule.HEAD)
    assert queue.pending() == 1


@pytest.mark.parametrize("start", [0, 1, 65533, 65535])
def test_pending_full_ring_is_allowed_and_one_more_is_a_ring_error(start: int) -> None:
    ring = RawRing.private(4)
    ring.start_at(start)
    queue = queue_of(ring)
    ring.avail_idx = start + 4
    assert queue.pending() == 4
    ring.avail_idx = start + 5
    with pytest.raises(RingError) as caught:
        queue.pending()
    assert (caught.value.rule, caught.value.found) == (Rule.AVAIL_IDX, 5)


def test_pending_index_that_goes_backwards_is_a_ring_error() -> None:
    ring = RawRing.private(4)
    ring.start_at(10)
    queue = queue_of(ring)
    ring.avail_idx = 9
    with pytest.raises(RingError) as caught:
        queue.pending()
    assert caught.value.found == 65535


def test_queue_of_the_largest_size_can_be_full() -> None:
    ring = RawRing.private(32768)
    ring.start_at(40000)
    queue = queue_of(ring)
    ring.avail_idx = 40000 + 32768
    assert queue.pending() == 32768


def test_push_stores_element_and_length_and_moves_the_index() -> None:
    ring = RawRing.private(4)
    queue = queue_of(ring)
    queue.push(3, 77)
    assert ring.used_idx == queue.used_index == 1
    assert USED_ELEMENT.unpack_from(ring.used, 4) == (3, 77)


def test_push_at_65535_wraps_the_index_and_uses_the_last_slot() -> None:
    ring = RawRing.private(4)
    ring.start_at(65535)
    queue = queue_of(ring)
    queue.push(2)
    assert ring.used_idx == queue.used_index == 0
    assert USED_ELEMENT.unpack_from(ring.used, 4 + 3 * USED_ELEMENT.size) == (2, 0)


def test_push_after_the_driver_scribbled_on_used_idx_goes_on_from_our_own() -> None:
    # The used ring is the guest's memory too. Read once: a changed index must not move us.
    ring = RawRing.private(4)
    queue = queue_of(ring)
    queue.push(0)
    ring.used_idx = 40000
    queue.push(1)
    assert ring.used_idx == queue.used_index == 2


def test_queue_resumes_at_used_idx_and_takes_unanswered_chains_again() -> None:
    ring = RawRing.private(4)
    first = queue_of(ring)
    for index in range(3):
        ring.offer(ring.chain([index], [(0x1000 * index, 4)]))
    first.push(first.pop().head)
    first.pop()  # Taken and never answered: its process is killed here.
    second = queue_of(ring)
    assert second.pending() == 2
    assert [second.pop().head, second.pop().head] == [1, 2]


def test_pop_reads_the_entry_of_the_index_modulo_the_size() -> None:
    ring = RawRing.private(2)
    ring.start_at(65535)
    queue = queue_of(ring)
    ring.offer(ring.chain([0], [(0x1000, 4)]))
    ring.offer(ring.chain([1], [(0x2000, 4)]))
    assert [queue.pop().head, queue.pop().head] == [0, 1]
    assert (queue.next, queue.pending()) == (1, 0)


@pytest.mark.parametrize(("flags", "wanted"), [(0, True), (VIRTQ_AVAIL_F_NO_INTERRUPT, False)])
def test_wants_call_follows_the_drivers_flag(flags: int, wanted: bool) -> None:
    ring = RawRing.private(2)
    queue = queue_of(ring)
    ring.set_flags(flags)
    assert queue.wants_call() is wanted
