"""A back-end's state as the messages that lead to it: how one controller tells it to the next.

Pure. What is restored so passes the same checks as what a front-end says itself.
"""

from collections.abc import Sequence

from balloon_daemon.vhost_user import messages as wire
from balloon_daemon.vhost_user.backend import Backend
from balloon_daemon.vhost_user.memory_table import Fd, Region
from balloon_daemon.vhost_user.messages import FrontendRequest as Request

Told = tuple[bytes, tuple[Fd, ...]]
"""A message with its descriptors."""


def replay(backend: Backend) -> list[Told]:
    """The messages that bring a fresh back-end to this one's state, with their descriptors.

    The descriptors stay this back-end's. Its config space is not among it.
    """
    memory = replay_memory(backend.memory.regions)
    return replay_features(backend) + memory + replay_vrings(backend)


def replay_features(backend: Backend) -> list[Told]:
    """What comes first: features, status and channel."""
    told = [
        _message(Request.SET_PROTOCOL_FEATURES, wire.U64.pack(backend.protocol_features)),
        _message(Request.SET_FEATURES, wire.U64.pack(backend.acknowledged)),
    ]
    if backend.status:
        told.append(_message(Request.SET_STATUS, wire.U64.pack(backend.status)))
    if backend.channel is not None:
        told.append(_message(Request.SET_BACKEND_REQ_FD, b"", backend.channel))
    return told


def replay_memory(regions: Sequence[Region]) -> list[Told]:
    """The memory table, region by region, without a file where it was let go of."""
    return [
        _message(
            Request.ADD_MEM_REG,
            region.description.encode_single(),
            *(() if region.fd is None else (region.fd,)),
        )
        for region in regions
    ]


def replay_vrings(backend: Backend) -> list[Told]:
    """What comes last: the vrings, which need the memory."""
    told: list[Told] = []

    def tell(request: Request, payload: bytes, *fds: Fd) -> None:
        told.append(_message(request, payload, *fds))

    for index, vring in enumerate(backend.vrings):
        if vring.size:
            tell(Request.SET_VRING_NUM, wire.VringState(index, vring.size).encode())
        if vring.addr is not None:
            tell(Request.SET_VRING_ADDR, vring.addr.encode())
        tell(Request.SET_VRING_BASE, wire.VringState(index, vring.base).encode())
        for request, fd in (
            (Request.SET_VRING_CALL, vring.call),
            (Request.SET_VRING_ERR, vring.err),
            # A ring that cannot be served stays without a kick, and so it will not be.
            (Request.SET_VRING_KICK, None if vring.unusable else vring.kick),
        ):
            if fd is not None:
                tell(request, wire.U64.pack(index), fd)
        tell(Request.SET_VRING_ENABLE, wire.VringState(index, vring.enabled).encode())
    return told


def _message(request: Request, payload: bytes, *fds: Fd) -> Told:
    return wire.encode_request(request, payload), fds
