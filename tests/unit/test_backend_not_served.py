"""What the back-end answers and does not serve: no VM ends because its balloon cannot be had.

A driver chooses part of what its VMM says, and most VMMs exit when a back-end hangs up while they
start. So each of these is answered as if all were well, named once, and nothing is served by it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import pytest

from balloon_daemon.units import FrontendAddr, GuestAddr
from balloon_daemon.vhost_user.backend import Backend
from balloon_daemon.vhost_user.effects import (
    Effect,
    NotServed,
    RingsChanged,
    Send,
    StopDevice,
)
from balloon_daemon.vhost_user.messages import (
    FLAG_NEED_REPLY,
    OFFERED_PROTOCOL_FEATURES,
    U64,
    VERSION,
    VRING_NOFD_MASK,
    FrontendRequest,
    Message,
    ProtocolFeature,
    VringAddr,
    VringState,
    decode_message,
    encode_memory_table,
    encode_reply,
)
from balloon_daemon.vhost_user.replay import replay
from balloon_daemon.virtio.balloon import BalloonFeature
from tests.fakes.counted_fd import CountedFd
from tests.fakes.told_backend import ADDR, OFFERED, REGION, fresh, say, set_up
from tests.harness.faults import fault

Q = FrontendRequest
RESTART: list[Effect] = [StopDevice(), RingsChanged()]
NO_ROOM = "its descriptors found no room here (too many open files)"


def ask(
    backend: Backend,
    request: Q,
    payload: bytes = b"",
    fds: Sequence[CountedFd] = (),
    *,
    lost: bool = False,
) -> list[Effect]:
    """Says something that wants to be acknowledged."""
    return say(backend, request, payload, fds, VERSION | FLAG_NEED_REPLY, lost=lost)


def running(indices: Sequence[int] = (0, 1)) -> Backend:
    """A back-end whose vrings run, and whose front-end wants acknowledgements."""
    backend = set_up(indices)
    say(backend, Q.SET_PROTOCOL_FEATURES, U64.pack(ProtocolFeature.REPLY_ACK))
    return backend


def ack(request: Q, failed: int = 0) -> Send:
    return Send(encode_reply(request, U64.pack(failed)))


def served(backend: Backend) -> list[int]:
    return [vring.index for vring in backend.ready_vrings()]


def held(backend: Backend) -> list[object]:
    """Every descriptor that the back-end has."""
    fds: list[object] = [region.fd for region in backend.memory.regions]
    for vring in backend.vrings:
        fds += [vring.kick, vring.call, vring.err]
    return [fd for fd in [*fds, backend.channel] if fd is not None]


# --- vrings -----------------------------------------------------------------------------------


def at(*addresses: int) -> bytes:
    descriptors, used, available = map(FrontendAddr, addresses)
    return VringAddr(1, 0, descriptors, used, available).encode()


class Said(NamedTuple):
    """What cannot be served of vring 1, and the same as it should be."""

    request: Q
    wrong: bytes
    fds: int
    why: str
    right: bytes
    right_fds: int


SIZES = "allowed are powers of two up to 32768"
RIGHT_NUM, RIGHT_BASE = VringState(1, 128).encode(), VringState(1, 0).encode()
RIGHT_ADDR = at(ADDR.descriptors, ADDR.used, ADDR.available)
RIGHT_FD, NO_FD = U64.pack(1), U64.pack(1 | VRING_NOFD_MASK)
UNALIGNED = "vring 1 is not aligned (virtio 2.7)"
NO_EVENTFD = "vring 1's descriptor is no eventfd"
POLLED = "without a descriptor: polled rings are not served"
NOT_TO_BE_SERVED = [
    *[
        Said(Q.SET_VRING_NUM, VringState(1, n).encode(), 0, f"size {n}, {SIZES}", RIGHT_NUM, 0)
        for n in (0, 3, 100, 65536, 2**32 - 1)
    ],
    *[
        Said(Q.SET_VRING_ADDR, at(*places), 0, UNALIGNED, RIGHT_ADDR, 0)
        for places in ((8, 0, 0), (0, 2, 0), (0, 0, 1), (2**64 - 1,) * 3)
    ],
    *[
        Said(Q.SET_VRING_BASE, VringState(1, n).encode(), 0, f"base {n} is over 65535", base, 0)
        for n, base in ((65536, RIGHT_BASE), (2**32 - 1, VringState(1, 65535).encode()))
    ],
    Said(Q.SET_VRING_KICK, NO_FD, 0, POLLED, RIGHT_FD, 1),
    Said(Q.SET_VRING_KICK, RIGHT_FD, 1, NO_EVENTFD, RIGHT_FD, 1),
    Said(Q.SET_VRING_CALL, RIGHT_FD, 1, NO_EVENTFD, RIGHT_FD, 1),
    Said(Q.SET_VRING_CALL, RIGHT_FD, 1, NO_EVENTFD, NO_FD, 0),
]


@fault("kick, call or err that is no eventfd; channel that is no Unix socket")
@fault("ring of size 0")
@pytest.mark.parametrize("said", NOT_TO_BE_SERVED, ids=lambda said: f"{said.request.name}")
def test_vring_that_cannot_be_served_is_answered_and_its_neighbour_served(said: Said) -> None:
    backend = running()
    fds = [CountedFd(right_kind=False) for _ in range(said.fds)]
    before = held(backend)

    effects = ask(backend, said.request, said.wrong, fds)

    why = NotServed(f"{said.request.name}: {said.why}")
    assert effects == [why, *RESTART, ack(said.request)]
    assert served(backend) == [0]
    closed = [fd for fd in before if fd not in held(backend)]
    assert [fd.closings for fd in (*closed, *fds) if isinstance(fd, CountedFd)] == [1] * (
        len(closed) + len(fds)
    )


@fault("ring of size 0")
@pytest.mark.parametrize("said", NOT_TO_BE_SERVED, ids=lambda said: f"{said.request.name}")
def test_vring_that_could_not_be_served_is_once_it_is_described_rightly(said: Said) -> None:
    backend = running()
    ask(backend, said.request, said.wrong, [CountedFd(right_kind=False) for _ in range(said.fds)])

    effects = ask(backend, said.request, said.right, [CountedFd() for _ in range(said.right_fds)])

    assert effects == [*RESTART, ack(said.request)]
    assert served(backend) == [0, 1]


@fault("ring of size 0")
@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ((Q.SET_VRING_BASE, VringState(1, 65536).encode()), (Q.SET_VRING_CALL, RIGHT_FD)),
        ((Q.SET_VRING_CALL, RIGHT_FD), (Q.SET_VRING_BASE, RIGHT_BASE)),
        ((Q.SET_VRING_NUM, VringState(1, 3).encode()), (Q.SET_VRING_ADDR, RIGHT_ADDR)),
        ((Q.SET_VRING_ADDR, at(8, 0, 0)), (Q.SET_VRING_KICK, RIGHT_FD)),
    ],
)
def test_vring_stays_not_served_whatever_else_is_said_rightly(
    wrong: tuple[Q, bytes], right: tuple[Q, bytes]
) -> None:
    # QEMU says the size, the base, the addresses, the kick, the call, in this order.
    backend = running()
    takes_fd = (Q.SET_VRING_CALL, Q.SET_VRING_KICK)
    say(backend, *wrong, [CountedFd(right_kind=False)] if wrong[0] in takes_fd else [])
    say(backend, *right, [CountedFd()] if right[0] in takes_fd else [])
    say(backend, Q.SET_VRING_ENABLE, VringState(1, 1).encode())
    assert served(backend) == [0]


def test_inflateq_that_cannot_be_served_leaves_nothing_to_serve() -> None:
    backend = running()
    say(backend, Q.SET_VRING_NUM, VringState(0, 3).encode())
    assert served(backend) == []
    assert backend.refusal == ""


@fault("kick, call or err that is no eventfd; channel that is no Unix socket")
def test_err_that_is_no_eventfd_is_closed_and_the_device_runs_on() -> None:
    backend, fd = running(), CountedFd(right_kind=False)
    effects = ask(backend, Q.SET_VRING_ERR, RIGHT_FD, [fd])
    assert effects == [NotServed(f"SET_VRING_ERR: {NO_EVENTFD}"), ack(Q.SET_VRING_ERR)]
    assert fd.closings == 1
    assert served(backend) == [0, 1]


@pytest.mark.parametrize("number", [2, 2**32 - 1])
def test_enable_of_another_number_than_0_and_1_enables(number: int) -> None:
    backend = running()
    say(backend, Q.SET_VRING_ENABLE, VringState(1, 0).encode())
    effects = ask(backend, Q.SET_VRING_ENABLE, VringState(1, number).encode())
    assert effects == [*RESTART, ack(Q.SET_VRING_ENABLE)]
    assert served(backend) == [0, 1]


@fault("ring of size 0")
@pytest.mark.parametrize("index", [5, 255, 2**32 - 1])
@pytest.mark.parametrize(
    ("request_", "num"),
    [(Q.SET_VRING_NUM, 128), (Q.SET_VRING_BASE, 7), (Q.SET_VRING_ENABLE, 1)],
)
def test_vring_that_no_balloon_has_is_answered_and_left_alone(
    request_: Q, num: int, index: int
) -> None:
    backend = running()
    assert ask(backend, request_, VringState(index, num).encode()) == [ack(request_)]
    addr = VringAddr(index, 0, ADDR.descriptors, ADDR.used, ADDR.available)
    assert ask(backend, Q.SET_VRING_ADDR, addr.encode()) == [ack(Q.SET_VRING_ADDR)]
    base = encode_reply(Q.GET_VRING_BASE, VringState(index, 0).encode())
    assert ask(backend, Q.GET_VRING_BASE, VringState(index, 0).encode()) == [Send(base)]
    again = Message(Q.GET_VRING_BASE, VERSION, VringState(index, 0).encode())
    assert backend.reply_again(again) == [base]
    assert not backend.vring_is_to_stop(again)
    assert served(backend) == [0, 1]
    assert len(backend.vrings) == 5


@pytest.mark.parametrize("request_", [Q.SET_VRING_KICK, Q.SET_VRING_CALL, Q.SET_VRING_ERR])
def test_descriptor_of_a_vring_that_no_balloon_has_is_closed(request_: Q) -> None:
    backend, fd = running(), CountedFd()
    effects = ask(backend, request_, U64.pack(5), [fd])
    assert effects[0] == NotServed(f"{request_.name}: vring 5, a balloon has 5")
    assert effects[-1] == ack(request_)
    assert fd.closings == 1
    assert served(backend) == [0, 1]


# --- features and requests --------------------------------------------------------------------


@fault("other request of a feature that was not offered")
@pytest.mark.parametrize(
    "unknown",
    [
        BalloonFeature.FREE_PAGE_HINT,
        BalloonFeature.EVENT_IDX,
        *(1 << b for b in (7, 28, 33, 36, 63)),
    ],
)
def test_feature_that_nobody_offered_is_answered_and_no_device_is_forked(unknown: int) -> None:
    backend = running()
    effects = ask(backend, Q.SET_FEATURES, U64.pack(OFFERED | unknown))
    assert effects == [*RESTART, ack(Q.SET_FEATURES)]
    assert served(backend) == []
    assert backend.ready_vrings(disabled=True) == []
    assert backend.refusal == f"it acknowledges features that were not offered ({unknown:#x})"

    ask(backend, Q.SET_FEATURES, U64.pack(OFFERED))
    assert served(backend) == [0, 1]
    assert backend.refusal == ""


@fault("other request of a feature that was not offered")
@pytest.mark.parametrize("bit", [1, 12, 17, 40, 63])
def test_protocol_feature_that_nobody_offered_is_answered_and_gone_without(bit: int) -> None:
    backend = running()
    said = int(OFFERED_PROTOCOL_FEATURES) | 1 << bit
    why = f"SET_PROTOCOL_FEATURES: {1 << bit:#x} was not offered; going on without"
    assert ask(backend, Q.SET_PROTOCOL_FEATURES, U64.pack(said)) == [
        NotServed(why),
        ack(Q.SET_PROTOCOL_FEATURES),
    ]
    assert backend.protocol_features == OFFERED_PROTOCOL_FEATURES
    assert served(backend) == [0, 1]


@fault("other request of a feature that was not offered")
@pytest.mark.parametrize("count", [0, 1, 8])
@pytest.mark.parametrize(
    "request_",
    [
        Q.SET_LOG_FD,
        Q.SEND_RARP,
        Q.NET_SET_MTU,
        Q.SET_VRING_ENDIAN,
        Q.SET_INFLIGHT_FD,
        Q.GPU_SET_SOCKET,
        Q.VRING_KICK,
        Q.POSTCOPY_LISTEN,
    ],
)
def test_request_that_nobody_waits_for_is_told_to_have_failed_and_left_alone(
    request_: Q, count: int
) -> None:
    backend, fds = running(), [CountedFd() for _ in range(count)]
    refused = NotServed(f"{request_.name}: is not offered; refused")
    assert ask(backend, request_, bytes(8), fds) == [refused, ack(request_, failed=1)]
    assert say(backend, request_, bytes(8)) == [refused]
    assert [fd.closings for fd in fds] == [1] * count
    assert served(backend) == [0, 1]


@fault("kick, call or err that is no eventfd; channel that is no Unix socket")
def test_channel_that_is_no_unix_socket_is_closed_as_is_the_one_before() -> None:
    backend, before, fd = running(), CountedFd(), CountedFd(right_kind=False)
    say(backend, Q.SET_BACKEND_REQ_FD, fds=[before])
    why = "SET_BACKEND_REQ_FD: its descriptor is no Unix socket: no target can be signalled"
    effects = ask(backend, Q.SET_BACKEND_REQ_FD, fds=[fd])
    assert effects == [NotServed(why), *RESTART, ack(Q.SET_BACKEND_REQ_FD)]
    assert (before.closings, fd.closings, backend.channel) == (1, 1, None)
    assert served(backend) == [0, 1]


# --- memory -----------------------------------------------------------------------------------

OVERLAPPING = REGION._replace(frontend_addr=FrontendAddr(0x1000))
WHY_OVERLAPPING = "memory region at 0x0 overlaps that at 0x0"


@pytest.mark.parametrize(
    ("request_", "payload", "count"),
    [
        (Q.ADD_MEM_REG, OVERLAPPING.encode_single(), 1),
        (Q.SET_MEM_TABLE, encode_memory_table([REGION, OVERLAPPING]), 2),
    ],
)
def test_table_that_contradicts_itself_is_answered_and_no_device_is_forked(
    request_: Q, payload: bytes, count: int
) -> None:
    backend, fds = running(), [CountedFd() for _ in range(count)]
    old = backend.memory.regions[0].fd
    assert ask(backend, request_, payload, fds) == [*RESTART, ack(request_)]
    assert (served(backend), backend.refusal) == ([], WHY_OVERLAPPING)
    assert [fd.closings for fd in (old, *fds) if isinstance(fd, CountedFd)] == [1] * (count + 1)

    effects = ask(backend, Q.REM_MEM_REG, REGION.encode_single())
    assert effects == [*RESTART, ack(Q.REM_MEM_REG)]
    say(backend, Q.SET_MEM_TABLE, encode_memory_table([REGION]), [CountedFd()])
    assert (served(backend), backend.refusal) == ([0, 1], "")


@pytest.mark.parametrize("count", [0, 1])
def test_region_that_is_not_there_is_taken_away_with_a_word_and_all_is_served_on(
    count: int,
) -> None:
    backend, fds = running(), [CountedFd() for _ in range(count)]
    gone = REGION._replace(guest_addr=GuestAddr(1 << 32))
    effects = ask(backend, Q.REM_MEM_REG, gone.encode_single(), fds)
    why = NotServed("REM_MEM_REG: there is no such region")
    assert effects == [why, *RESTART, ack(Q.REM_MEM_REG)]
    assert [fd.closings for fd in fds] == [1] * count
    assert served(backend) == [0, 1]


@pytest.mark.parametrize("request_", [Q.ADD_MEM_REG, Q.SET_MEM_TABLE])
def test_memory_of_which_nothing_can_be_freed_is_served_and_told_on_without_its_file(
    request_: Q,
) -> None:
    # What its guest gives is counted, and the user told.
    backend, other = running(), fresh()
    fd = CountedFd(None, never_freed="is a file on fuse", mappable=False)
    say(backend, Q.SET_MEM_TABLE, encode_memory_table([]))
    single = request_ is Q.ADD_MEM_REG
    payload = REGION.encode_single() if single else encode_memory_table([REGION])
    assert ask(backend, request_, payload, [fd]) == [*RESTART, ack(request_)]
    assert (served(backend), backend.refusal, fd.closings) == ([0, 1], "", 1)

    for encoded, fds in replay(backend):
        other.handle(decode_message(encoded), fds)
    assert served(other) == [0, 1]
    (region,) = other.memory.regions
    assert (region.description, region.fd, bool(region.never_freed)) == (REGION, None, True)


# --- descriptors that found no room -----------------------------------------------------------


@fault("no descriptor left for a message's own")
@pytest.mark.parametrize(
    ("request_", "payload"),
    [
        (Q.SET_MEM_TABLE, encode_memory_table([REGION])),
        (Q.ADD_MEM_REG, REGION._replace(guest_addr=GuestAddr(1 << 32)).encode_single()),
    ],
)
def test_memory_whose_descriptors_are_lost_is_answered_and_no_device_is_forked(
    request_: Q, payload: bytes
) -> None:
    backend = running()
    old = backend.memory.regions[0].fd
    assert ask(backend, request_, payload, lost=True) == [*RESTART, ack(request_)]
    assert (served(backend), backend.refusal) == ([], f"its memory is unknown: {NO_ROOM}")
    assert isinstance(old, CountedFd)
    assert old.closings == 1

    say(backend, Q.SET_MEM_TABLE, encode_memory_table([REGION]), [CountedFd()])
    assert (served(backend), backend.refusal) == ([0, 1], "")


@pytest.mark.parametrize("request_", [Q.SET_VRING_KICK, Q.SET_VRING_CALL])
def test_vring_whose_kick_or_call_is_lost_is_not_served_until_there_is_one(request_: Q) -> None:
    # Without a call its driver would wait for ever for what it gave.
    backend = running()
    vring = backend.vrings[1]
    old = vring.kick if request_ is Q.SET_VRING_KICK else vring.call
    effects = ask(backend, request_, RIGHT_FD, lost=True)
    assert effects == [NotServed(f"{request_.name}: {NO_ROOM}"), *RESTART, ack(request_)]
    assert served(backend) == [0]
    assert isinstance(old, CountedFd)
    assert old.closings == 1

    say(backend, request_, RIGHT_FD, [CountedFd()])
    assert served(backend) == [0, 1]


@pytest.mark.parametrize("index", [1, 5, 255])
def test_err_that_is_lost_costs_nothing(index: int) -> None:
    backend = running()
    effects = ask(backend, Q.SET_VRING_ERR, U64.pack(index), lost=True)
    assert effects[0] == NotServed(f"SET_VRING_ERR: {NO_ROOM}")
    assert effects[-1] == ack(Q.SET_VRING_ERR)
    assert served(backend) == [0, 1]


def test_channel_that_is_lost_is_none() -> None:
    backend, before = running(), CountedFd()
    say(backend, Q.SET_BACKEND_REQ_FD, fds=[before])
    effects = ask(backend, Q.SET_BACKEND_REQ_FD, lost=True)
    why = NotServed(f"SET_BACKEND_REQ_FD: {NO_ROOM}")
    assert effects == [why, *RESTART, ack(Q.SET_BACKEND_REQ_FD)]
    assert (before.closings, backend.channel) == (1, None)
    assert served(backend) == [0, 1]


@pytest.mark.parametrize("request_", [Q.SET_OWNER, Q.SET_LOG_FD, Q.GET_FEATURES])
def test_request_that_needs_no_descriptor_is_answered_though_some_are_lost(request_: Q) -> None:
    backend = fresh()
    say(backend, Q.SET_PROTOCOL_FEATURES, U64.pack(ProtocolFeature.REPLY_ACK))
    effects = ask(backend, request_, lost=True)
    assert sum(isinstance(effect, Send) for effect in effects) == 1
