"""Requests that the back-end refuses, as nobody can answer them: each with its fds closed.

What can be answered and not be served is in ``test_backend_not_served.py``.
"""

import pytest

from balloon_daemon.errors import FrontendError
from balloon_daemon.vhost_user.messages import (
    FLAG_REPLY,
    U64,
    VERSION,
    VRING_NOFD_MASK,
    ConfigAccess,
    FrontendRequest,
    Message,
    encode_memory_table,
)
from tests.fakes.counted_fd import CountedFd
from tests.fakes.told_backend import REGION, fresh, say

Q = FrontendRequest


@pytest.mark.parametrize("flags", [0, 2, 3, VERSION | FLAG_REPLY])
def test_message_with_flags_of_no_request_is_refused(flags: int) -> None:
    with pytest.raises(FrontendError, match="GET_FEATURES: flags"):
        say(fresh(), Q.GET_FEATURES, flags=flags)


WAITS_FOR_A_REPLY_OF_ITS_OWN = (
    Q.SET_LOG_BASE,
    Q.IOTLB_MSG,
    Q.CREATE_CRYPTO_SESSION,
    Q.CLOSE_CRYPTO_SESSION,
    Q.POSTCOPY_ADVISE,
    Q.POSTCOPY_END,
    Q.GET_INFLIGHT_FD,
    Q.GET_SHARED_OBJECT,
    Q.SET_DEVICE_STATE_FD,
    Q.CHECK_DEVICE_STATE,
)
"""Of features that were not offered: whatever were answered would be taken for something."""
IN_NO_SPECIFICATION = (0, *range(44, 50), 2**32 - 1)


@pytest.mark.parametrize("request_", [*WAITS_FOR_A_REPLY_OF_ITS_OWN, *IN_NO_SPECIFICATION])
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
        (Q.ADD_MEM_REG, REGION.encode_single(), 2),
        (Q.SET_BACKEND_REQ_FD, b"", 0),
        (Q.SET_BACKEND_REQ_FD, b"", 2),
        (Q.SET_VRING_KICK, U64.pack(0), 0),
        (Q.SET_VRING_KICK, U64.pack(0), 2),
        (Q.SET_VRING_KICK, U64.pack(VRING_NOFD_MASK), 1),
        (Q.SET_VRING_CALL, U64.pack(0), 0),
        (Q.SET_VRING_CALL, U64.pack(VRING_NOFD_MASK), 1),
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
