"""How many descriptors each request may bring, and whether it has a reply of its own. Pure.

Source: QEMU's "Vhost-user Protocol", "Front-end message types".
"""

from balloon_daemon.vhost_user import messages as wire
from balloon_daemon.vhost_user.memory_table import MAX_MEM_SLOTS
from balloon_daemon.vhost_user.messages import FrontendRequest as Request
from balloon_daemon.vhost_user.messages import Message
from balloon_daemon.virtio.balloon import MAX_QUEUES

CONSTANTS: dict[int, int] = {
    Request.GET_PROTOCOL_FEATURES: wire.OFFERED_PROTOCOL_FEATURES,
    Request.GET_QUEUE_NUM: MAX_QUEUES,
    Request.GET_MAX_MEM_SLOTS: MAX_MEM_SLOTS,
}
"""Requests that are always answered with the same u64."""

LEFT_ALONE = (
    Request.SET_LOG_FD,
    Request.SEND_RARP,
    Request.NET_SET_MTU,
    Request.SET_VRING_ENDIAN,
    Request.SET_INFLIGHT_FD,
    Request.GPU_SET_SOCKET,
    Request.VRING_KICK,
    Request.POSTCOPY_LISTEN,
)
"""Requests of features that were not offered. None has a reply of its own, so no front-end waits
for an answer."""

VRING_FDS = (Request.SET_VRING_KICK, Request.SET_VRING_CALL, Request.SET_VRING_ERR)

ANSWERED = {
    *CONSTANTS,
    Request.GET_FEATURES,
    Request.GET_VRING_BASE,
    Request.GET_CONFIG,
    Request.GET_STATUS,
}
"""Requests with a reply of their own, which therefore get no acknowledgement."""

NO_FDS = range(1)
ALLOWED_FDS: dict[int, range] = {
    Request.SET_MEM_TABLE: range(wire.MAX_FDS + 1),
    Request.SET_VRING_KICK: range(2),
    Request.SET_VRING_CALL: range(2),
    Request.SET_VRING_ERR: range(2),
    Request.REM_MEM_REG: range(2),
    Request.ADD_MEM_REG: range(2),
    Request.SET_BACKEND_REQ_FD: range(1, 2),
    **dict.fromkeys(LEFT_ALONE, range(wire.MAX_FDS + 1)),
}
"""How many descriptors may come with a message; requests not listed may bring none."""


def lacks_fds(message: Message) -> bool:
    """Whether this message, received without descriptors, should have come with some."""
    if message.request == Request.SET_MEM_TABLE:
        return bool(wire.decode_memory_table(message))
    if message.request in VRING_FDS:
        return not wire.decode_u64(message) & wire.VRING_NOFD_MASK
    return message.request in (Request.ADD_MEM_REG, Request.SET_BACKEND_REQ_FD)


def acknowledgement(message: Message) -> bytes:
    """The answer that REPLY_ACK asks for: 0, or 1 where the request is refused."""
    refused = message.request in LEFT_ALONE
    return wire.encode_reply(message.request, wire.U64.pack(refused))
