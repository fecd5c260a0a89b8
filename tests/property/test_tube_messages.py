"""The tube's messages: round trips both ways, and garbage raises one error."""

from hypothesis import given, settings
from hypothesis import strategies as st

from balloon_daemon.errors import Rule, TubeError
from balloon_daemon.tube.messages import (
    Command,
    Down,
    Fault,
    FaultKind,
    Progress,
    Ready,
    Stats,
    Stopped,
    Target,
    Up,
    decode_down,
    decode_up,
    encode_down,
    encode_up,
)
from balloon_daemon.virtio.balloon import MAX_QUEUES, MAX_STATS

U16 = st.integers(0, 2**16 - 1)
U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
QUEUES = st.integers(0, MAX_QUEUES - 1)


def tuples_of(
    pair: st.SearchStrategy[tuple[int, int]], most: int
) -> st.SearchStrategy[tuple[tuple[int, int], ...]]:
    return st.lists(pair, max_size=most).map(tuple)


REPORTS: st.SearchStrategy[Up] = st.one_of(
    st.just(Ready()),
    st.builds(Progress, *[U64] * len(Progress._fields)),
    st.builds(Stats, tuples_of(st.tuples(U16, U64), MAX_STATS)),
    st.builds(
        Fault,
        st.sampled_from([FaultKind.CHAIN, FaultKind.RING]),
        QUEUES,
        st.sampled_from(list(Rule)),
        U32,
        U64,
        U64,
    ),
    st.builds(Fault, st.just(FaultKind.HOST), QUEUES, st.integers(0, 4095), U32, U64, U64),
    st.builds(Stopped, tuples_of(st.tuples(QUEUES, U16), MAX_QUEUES)),
)
ORDERS: st.SearchStrategy[Down] = st.one_of(st.builds(Target, U64), st.sampled_from(list(Command)))


@given(ORDERS)
def test_order_round_trip(order: Down) -> None:
    assert decode_down(encode_down(order)) == order


@settings(max_examples=300)
@given(REPORTS)
def test_report_round_trip(report: Up) -> None:
    assert decode_up(encode_up(report)) == report


KINDS = st.integers(0, 6).map(lambda kind: kind.to_bytes(4, "little"))


GARBAGE = st.builds(bytes.__add__, KINDS, st.binary(max_size=80))


@settings(max_examples=300)
@given(GARBAGE)
def test_decoding_garbage_gives_a_report_that_encodes_to_it_or_a_tube_error(
    datagram: bytes,
) -> None:
    try:
        again = encode_up(decode_up(datagram))
    except TubeError:
        again = datagram
    assert again == datagram


@settings(max_examples=100)
@given(GARBAGE)
def test_decoding_garbage_gives_an_order_that_encodes_to_it_or_a_tube_error(
    datagram: bytes,
) -> None:
    try:
        again = encode_down(decode_down(datagram))
    except TubeError:
        again = datagram
    assert again == datagram
