"""Requests that the back-end refuses: each with its fds closed."""

import pytest

from balloon_daemon.errors import FrontendError
from balloon_daemon.units import FrontendAddr
from balloon_daemon.vhost_user.messages import (
    FLAG_REPLY,
    U64,
    VERSION,
    VRING_NOFD_MASK,
    ConfigAccess,
    FrontendRequest,
    Message,
    ProtocolFeature,
    VringAddr,
    VringState,
    encode_memory_table,
)
from balloon_daemon.virtio.balloon import BalloonFeature
from tests.fakes.counted_fd import CountedFd
from tests.fakes.told_backend import OFFERED, REGION, fresh, say

Q = FrontendRequest


@pytest.mark.parametrize("flags", [0, 2, 3, VERSION | FLAG_REPLY])
def test_message_with_flags_of_no_request_is_refused(flags: int) -> None:
    with pytest.raises(FrontendError, match="GET_FEATURES: flags"):
        say(fresh(), Q.GET_FEATURES, flags=flags)


OFFERED_REQUESTS = {
    *range(Q.GET_FEATURES, Q.SET_MEM_TABLE + 1),
    *range(Q.SET_VRING_NUM, Q.SET_VRING_ENABLE + 1),
    Q.SET_BACKEND_REQ_FD,
    Q.GET_CONFIG,
    Q.SET_CONFIG,
    Q.GET_MAX_MEM_SLOTS,
    Q.ADD_MEM_REG,
    Q.REM_MEM_REG,
}


@pytest.mark.parametrize("request_", sorted({*range(50), 2**32 - 1} - OFFERED_REQUESTS))
def test_request_that_is_not_offered_is_refused_and_its_fds_closed(request_: int) -> None:
    fd = CountedFd()
    with pytest.raises(FrontendError, match="not offered"):
        fresh().handle(Message(request_, VERSION, bytes(8)), [fd])
    assert fd.closings == 1


@pytest.mark.parametrize(
    ("request_", "payload", "count"),
    [
        (Q.GET_FEATURES, b"", 1),
        (Q.SET_FEATURES, U64.pack(0), 1),
        (Q.SET_MEM_TABLE, encode_memory_table([REGION]), 0),
        (Q.SET_MEM_TABLE, encode_memory_table([REGION]), 2),
        (Q.SET_MEM_TABLE, encode_memory_table([REGION]), 9),
        (Q.ADD_MEM_REG, REGION.encode_single(), 0),
        (Q.ADD_MEM_REG, REGION.encode_single(), 2),
        (Q.SET_BACKEND_REQ_FD, b"", 0),
        (Q.SET_BACKEND_REQ_FD, b"", 2),
        (Q.SET_VRING_KICK, U64.pack(0), 0),
        (Q.SET_VRING_KICK, U64.pack(0), 2),
        (Q.SET_VRING_KICK, U64.pack(VRING_NOFD_MASK), 0),
        (Q.SET_VRING_KICK, U64.pack(VRING_NOFD_MASK), 1),
        (Q.SET_VRING_CALL, U64.pack(0), 0),
        (Q.SET_VRING_CALL, U64.pack(VRING_NOFD_MASK), 1),
        (Q.SET_VRING_ERR, U64.pack(5), 1),
        (Q.SET_VRING_CALL, U64.pack(0x200), 1),
        (Q.SET_CONFIG, ConfigAccess(4, 0, bytes(4)).encode(), 1),
        (Q.REM_MEM_REG, REGION.encode_single(), 2),
    ],
)
def test_request_with_a_wrong_number_of_fds_is_refused_and_all_are_closed(
    request_: Q, payload: bytes, count: int
) -> None:
    fds = [CountedFd() for _ in range(count)]
    with pytest.raises(FrontendError, match=request_.name):
        say(fresh(), request_, payload, fds)
    assert [fd.closings for fd in fds] == [1] * count


@pytest.mark.parametrize(
    ("request_", "payload"),
    [
        (Q.SET_FEATURES, U64.pack(OFFERED | BalloonFeature.EVENT_IDX)),
        (Q.SET_FEATURES, U64.pack(BalloonFeature.PAGE_POISON)),
        (Q.SET_PROTOCOL_FEATURES, U64.pack(ProtocolFeature.INFLIGHT_SHMFD)),
        (Q.SET_VRING_NUM, VringState(0, 0).encode()),
        (Q.SET_VRING_NUM, VringState(0, 3).encode()),
        (Q.SET_VRING_NUM, VringState(0, 65536).encode()),
        (Q.SET_VRING_NUM, VringState(5, 128).encode()),
        (Q.SET_VRING_BASE, VringState(0, 65536).encode()),
        (Q.SET_VRING_BASE, VringState(5, 0).encode()),
        (Q.GET_VRING_BASE, VringState(5, 0).encode()),
        (Q.SET_VRING_ENABLE, VringState(0, 2).encode()),
        (Q.SET_VRING_ENABLE, VringState(2**32 - 1, 1).encode()),
        (Q.SET_VRING_ADDR, VringAddr(5, 0, *[FrontendAddr(0)] * 3).encode()),
        (Q.SET_VRING_ADDR, VringAddr(0, 0, *map(FrontendAddr, (8, 0, 0))).encode()),
        (Q.SET_VRING_ADDR, VringAddr(0, 0, *map(FrontendAddr, (0, 2, 0))).encode()),
        (Q.SET_VRING_ADDR, VringAddr(0, 0, *map(FrontendAddr, (0, 0, 1))).encode()),
        (Q.SET_CONFIG, ConfigAccess(0, 0, bytes(17)).encode()),
        (Q.SET_CONFIG, ConfigAccess(13, 0, bytes(4)).encode()),
        (Q.REM_MEM_REG, REGION.encode_single()),
    ],
)
def test_request_with_an_impossible_number_is_refused(request_: Q, payload: bytes) -> None:
    with pytest.raises(FrontendError, match=request_.name):
        say(fresh(), request_, payload)
