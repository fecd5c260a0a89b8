"""A back-end, and functions that send a front-end's messages to it without a socket."""

from collections.abc import Sequence

from balloon_daemon.units import FrontendAddr, GuestAddr
from balloon_daemon.vhost_user.backend import Backend
from balloon_daemon.vhost_user.effects import AnswerVringBase, Effect
from balloon_daemon.vhost_user.memory_table import MemoryTable
from balloon_daemon.vhost_user.messages import (
    U64,
    VERSION,
    VHOST_USER_F_PROTOCOL_FEATURES,
    FrontendRequest,
    Message,
    RegionDescription,
    VringAddr,
    VringState,
    encode_memory_table,
)
from balloon_daemon.virtio.balloon import OFFERED_FEATURES
from tests.fakes.counted_fd import CountedFd, inspect, right_kind

Q = FrontendRequest
OFFERED = OFFERED_FEATURES | VHOST_USER_F_PROTOCOL_FEATURES
REGION = RegionDescription(GuestAddr(0), 1 << 20, FrontendAddr(0x7000_0000), 0)
ADDR = VringAddr(
    0, 0, FrontendAddr(0x7000_0000), FrontendAddr(0x7000_2000), FrontendAddr(0x7000_1000)
)


def say(
    backend: Backend,
    request: Q,
    payload: bytes = b"",
    fds: Sequence[CountedFd] = (),
    flags: int = VERSION,
    *,
    lost: bool = False,
) -> list[Effect]:
    """Sends one message to a back-end, as a connection would, and stops what it asks to stop."""
    effects = backend.handle(Message(request, flags, payload), fds, lost=lost)
    stop_vrings(backend, effects)
    return effects


def stop_vrings(backend: Backend, effects: Sequence[Effect]) -> None:
    """Answers GET_VRING_BASE as the controller does, once the device has ended."""
    for effect in effects:
        if isinstance(effect, AnswerVringBase):
            backend.stop_vring(effect.index)


def fresh() -> Backend:
    """A back-end that has received no message."""
    return Backend(MemoryTable(inspect), right_kind=right_kind)


def set_up(indices: Sequence[int], features: int = OFFERED) -> Backend:
    """A back-end with memory and these vrings running."""
    backend = fresh()
    say(backend, Q.SET_FEATURES, U64.pack(features))
    say(backend, Q.SET_MEM_TABLE, encode_memory_table([REGION]), [CountedFd()])
    for index in indices:
        say(backend, Q.SET_VRING_NUM, VringState(index, 128).encode())
        addr = VringAddr(index, 0, ADDR.descriptors, ADDR.used, ADDR.available)
        say(backend, Q.SET_VRING_ADDR, addr.encode())
        say(backend, Q.SET_VRING_KICK, U64.pack(index), [CountedFd()])
        say(backend, Q.SET_VRING_CALL, U64.pack(index), [CountedFd()])
        say(backend, Q.SET_VRING_ENABLE, VringState(index, 1).encode())
    return backend
