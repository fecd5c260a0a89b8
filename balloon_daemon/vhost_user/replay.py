"""Turns a back-end's state into messages, by which one controller passes it to the next.

Pure. A state restored by messages passes the same checks as a front-end's own messages.
"""

from collections.abc import Sequence

from balloon_daemon.vhost_user import messages as wire
from balloon_daemon.vhost_user.backend import Backend
from balloon_daemon.vhost_user.memory_table import Fd, Region
from balloon_daemon.vhost_user.messages import FrontendRequest as Request
from balloon_daemon.virtio.balloon import POISON_VAL_OFFSET

ReplayMessage = tuple[bytes, tuple[Fd, ...]]
"""A vhost-user message with its descriptors."""


def replay(backend: Backend) -> list[ReplayMessage]:
    """The messages that bring a fresh back-end to this one's state, with their descriptors.

    The messages carry all descriptors that this back-end holds, and this back-end goes on owning
    them. Of the config space only ``poison_val`` is included.
    """
    memory = replay_memory(backend.memory.regions)
    return replay_features(backend) + memory + replay_vrings(backend)


def replay_features(backend: Backend) -> list[ReplayMessage]:
    """The first messages: features, status, channel and ``poison_val``.

    ``poison_val`` is sent before the vrings, as a driver writes it before its rings run.
    """
    messages = [
        _message(Request.SET_PROTOCOL_FEATURES, wire.U64.pack(backend.protocol_features)),
        _message(Request.SET_FEATURES, wire.U64.pack(backend.acknowledged)),
    ]
    if backend.status:
        messages.append(_message(Request.SET_STATUS, wire.U64.pack(backend.status)))
    if backend.channel is not None:
        messages.append(_message(Request.SET_BACKEND_REQ_FD, b"", backend.channel))
    if backend.config.poison_val is not None:
        content = backend.config.read(POISON_VAL_OFFSET, 4)
        access = wire.ConfigAccess(POISON_VAL_OFFSET, 0, content)
        messages.append(_message(Request.SET_CONFIG, access.encode()))
    return messages


def replay_memory(regions: Sequence[Region]) -> list[ReplayMessage]:
    """The memory table, region by region; no descriptor where no device may map the file."""
    return [
        _message(
            Request.ADD_MEM_REG,
            region.description.encode_single(),
            *(() if region.fd is None else (region.fd,)),
        )
        for region in regions
    ]


def replay_vrings(backend: Backend) -> list[ReplayMessage]:
    """The last messages: the vrings, which need the memory."""
    messages: list[ReplayMessage] = []

    def add(request: Request, payload: bytes, *fds: Fd) -> None:
        messages.append(_message(request, payload, *fds))

    for index, vring in enumerate(backend.vrings):
        if vring.size:
            add(Request.SET_VRING_NUM, wire.VringState(index, vring.size).encode())
        if vring.addr is not None:
            add(Request.SET_VRING_ADDR, vring.addr.encode())
        add(Request.SET_VRING_BASE, wire.VringState(index, vring.base).encode())
        for request, fd in (
            (Request.SET_VRING_CALL, vring.call),
            (Request.SET_VRING_ERR, vring.err),
            # These messages go to the next controller. A ring that cannot be served is sent
            # without its kick descriptor, so that the next controller does not serve the ring
            # either.
            (Request.SET_VRING_KICK, None if vring.unusable else vring.kick),
            # Store that kick nevertheless, by a request that the next controller leaves alone.
            # Otherwise this controller's close of it at the end might be the file's last, which
            # may block for ever.
            (Request.SET_INFLIGHT_FD, vring.kick if vring.unusable else None),
        ):
            if fd is not None:
                add(request, wire.U64.pack(index), fd)
        add(Request.SET_VRING_ENABLE, wire.VringState(index, vring.enabled).encode())
    return messages


def _message(request: Request, payload: bytes, *fds: Fd) -> ReplayMessage:
    return wire.encode_request(request, payload), fds
