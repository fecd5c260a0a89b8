"""A short cut must not show: a chain of one descriptor is a chain as any other."""

from hypothesis import given
from hypothesis import strategies as st

from balloon_daemon.errors import GuestError, Rule
from balloon_daemon.virtio.split_queue import (
    VIRTQ_DESC_F_INDIRECT,
    VIRTQ_DESC_F_NEXT,
    VIRTQ_DESC_F_WRITE,
    SplitQueue,
)
from tests.fakes.raw_ring import RawRing

SIZE = 4
DESCRIPTORS = st.tuples(
    st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 15), st.integers(0, 5)
)
Table = list[tuple[int, int, int, int]]
Outcome = Rule | tuple[list[tuple[int, int]], list[tuple[int, int]]]


def chain_by_the_book(table: Table, head: int) -> Outcome:
    """virtio 1.3, 2.7.5, one descriptor after the other, with nothing done for speed."""
    parts: dict[bool, list[tuple[int, int]]] = {False: [], True: []}
    index = head
    for _ in table:
        addr, length, flags, following = table[index]
        writable = bool(flags & VIRTQ_DESC_F_WRITE)
        if flags & VIRTQ_DESC_F_INDIRECT:
            return Rule.INDIRECT
        if parts[True] and not writable:
            return Rule.ORDER
        parts[writable].append((addr, length))
        if not flags & VIRTQ_DESC_F_NEXT:
            return parts[False], parts[True]
        if following >= len(table):
            return Rule.NEXT
        index = following
    return Rule.LOOP


@given(
    table=st.lists(DESCRIPTORS, min_size=SIZE, max_size=SIZE),
    heads=st.lists(st.integers(0, SIZE - 1), min_size=1, max_size=SIZE),
)
def test_pop_of_any_table_gives_what_the_book_says(table: Table, heads: list[int]) -> None:
    ring = RawRing.private(SIZE)
    queue = SplitQueue("inflateq", SIZE, *ring.areas)
    for index, descriptor in enumerate(table):
        ring.describe(index, *descriptor)
    for head in heads:
        ring.offer(head)

    outcomes: list[Outcome] = []
    for head in heads:
        try:
            chain = queue.pop()
        except GuestError as err:
            outcomes.append(err.rule)
        else:
            assert chain.head == head
            outcomes.append((chain.readable, chain.writable))

    assert outcomes == [chain_by_the_book(table, head) for head in heads]
