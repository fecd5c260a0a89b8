"""A back-end's state as the messages that lead to it: how one controller tells it to the next.

Pure. What is restored so passes the same checks as what a front-end says itself.
"""

from balloon_daemon.vhost_user import messages as wire
from balloon_daemon.vhost_user.backend import Backend
from balloon_daemon.vhost_user.memory_table import Fd
from balloon_daemon.vhost_user.messages import FrontendRequest as Request


def replay(backend: Backend) -> list[tuple[bytes, tuple[Fd, ...]]]:
    """The messages that bring a fresh back-end to this one's state, with their descriptors.

    The descriptors stay this back-end's. Its config space is not among it.
    """
    told: list[tuple[bytes, tuple[Fd, ...]]] = []

    def tell(request: Request, payload: bytes, *fds: Fd) -> None:
        told.append((wire.encode_request(request, payload), fds))

    tell(Request.SET_PROTOCOL_FEATURES, wire.U64.pack(backend.protocol_features))
    tell(Request.SET_FEATURES, wire.U64.pack(backend.acknowledged))
    if backend.status:
        tell(Request.SET_STATUS, wire.U64.pack(backend.status))
    if backend.channel is not None:
        tell(Request.SET_BACKEND_REQ_FD, b"", backend.channel)
    for region in backend.memory.regions:
        # Without a file where it was let go of.
        file = () if region.fd is None else (region.fd,)
        tell(Request.ADD_MEM_REG, region.description.encode_single(), *file)
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
