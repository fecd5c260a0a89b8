"""The back-end under any sequence of messages, sensible, wrong or neither.

What must hold: a message gives effects, or raises FrontendError and changes nothing; every
descriptor is held or was closed exactly once; whoever waits for an answer gets exactly one.
"""

from collections.abc import Sequence
from dataclasses import astuple

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from balloon_daemon.errors import FrontendError
from balloon_daemon.units import FrontendAddr, GuestAddr
from balloon_daemon.vhost_user.effects import (
    AnswerVringBase,
    Effect,
    RingsChanged,
    Send,
    StopDevice,
)
from balloon_daemon.vhost_user.messages import (
    FLAG_NEED_REPLY,
    FLAG_REPLY,
    HEADER,
    OFFERED_PROTOCOL_FEATURES,
    U64,
    VERSION,
    VHOST_USER_F_PROTOCOL_FEATURES,
    ConfigAccess,
    FrontendRequest,
    Message,
    ProtocolFeature,
    RegionDescription,
    VringAddr,
    VringState,
    encode_memory_table,
)
from balloon_daemon.vhost_user.replay import replay
from balloon_daemon.virtio.balloon import OFFERED_FEATURES, BalloonQueue
from tests.fakes.counted_fd import CountedFd
from tests.fakes.told_backend import REGION, fresh, set_up, stop_vrings

Q = FrontendRequest
ALWAYS_ANSWERED = {
    Q.GET_FEATURES,
    Q.GET_PROTOCOL_FEATURES,
    Q.GET_QUEUE_NUM,
    Q.GET_MAX_MEM_SLOTS,
    Q.GET_VRING_BASE,
    Q.GET_CONFIG,
}

FILE_BYTES = 8 * 4096
PAGE_ADDRS = st.integers(0, 12).map(lambda page: page * 4096)
REGIONS = st.builds(
    RegionDescription,
    PAGE_ADDRS.map(GuestAddr),
    st.sampled_from([4096, 8192, FILE_BYTES, 100, 0]),
    PAGE_ADDRS.map(FrontendAddr),
    st.sampled_from([0, 4096]),
)
INDICES = st.integers(0, 5)
STATES = st.builds(VringState, INDICES, st.sampled_from([0, 1, 128, 3, 32768, 65536]))
ADDRS = st.builds(
    VringAddr, INDICES, st.just(0), *[st.sampled_from([0, 16, 4096, 7]).map(FrontendAddr)] * 3
)
FD_NUMBERS = st.builds(int.__or__, INDICES, st.sampled_from([0, 0, 0x100, 0x200]))
FEATURES = st.builds(
    int.__and__,
    st.integers(0, 2**33 - 1),
    st.sampled_from([OFFERED_FEATURES | VHOST_USER_F_PROTOCOL_FEATURES] * 3 + [2**33 - 1]),
)
PROTOCOL_FEATURES = st.builds(
    int.__and__,
    st.integers(0, 2**16 - 1),
    st.sampled_from([int(OFFERED_PROTOCOL_FEATURES)] * 3 + [2**16 - 1]),
)
CONFIGS = st.builds(
    ConfigAccess, st.integers(0, 17), st.integers(0, 2**32 - 1), st.binary(max_size=17)
)
PLAIN = [Q.GET_FEATURES, Q.GET_PROTOCOL_FEATURES, Q.GET_QUEUE_NUM, Q.GET_MAX_MEM_SLOTS]
PLAIN += [Q.SET_OWNER, Q.RESET_OWNER, Q.SET_BACKEND_REQ_FD]


def said(
    requests: Sequence[int], payloads: st.SearchStrategy[bytes]
) -> st.SearchStrategy[tuple[int, bytes]]:
    return st.tuples(st.sampled_from(requests), payloads)


MESSAGES = st.one_of(
    said(PLAIN, st.just(b"")),
    said([Q.SET_FEATURES], FEATURES.map(U64.pack)),
    said([Q.SET_PROTOCOL_FEATURES], PROTOCOL_FEATURES.map(U64.pack)),
    said([Q.SET_MEM_TABLE], st.lists(REGIONS, max_size=3).map(encode_memory_table)),
    said(
        [Q.ADD_MEM_REG, Q.REM_MEM_REG],
        st.one_of(REGIONS, st.just(REGION)).map(RegionDescription.encode_single),
    ),
    said(
        [Q.SET_VRING_NUM, Q.SET_VRING_BASE, Q.GET_VRING_BASE, Q.SET_VRING_ENABLE],
        STATES.map(VringState.encode),
    ),
    said([Q.SET_VRING_ADDR], ADDRS.map(VringAddr.encode)),
    said([Q.SET_VRING_KICK, Q.SET_VRING_CALL, Q.SET_VRING_ERR], FD_NUMBERS.map(U64.pack)),
    said([Q.GET_CONFIG, Q.SET_CONFIG], CONFIGS.map(ConfigAccess.encode)),
    said(list(range(50)), st.binary(max_size=48)),
)
FLAGS = st.sampled_from(
    [VERSION] * 4 + [VERSION | FLAG_NEED_REPLY] * 4 + [0, FLAG_REPLY | VERSION]
)


class AnyFrontend(RuleBasedStateMachine):
    """A front-end that says anything at all."""

    @initialize(running=st.booleans())
    def connect(self, running: bool) -> None:
        self.backend = set_up([0, 1, 2]) if running else fresh()
        self.given = self.held()

    def held(self) -> list[CountedFd]:
        held: list[object] = [region.fd for region in self.backend.memory.regions]
        for vring in self.backend.vrings:
            held += [vring.kick, vring.call, vring.err]
        return [fd for fd in [*held, self.backend.channel] if isinstance(fd, CountedFd)]

    def state(self) -> tuple[object, ...]:
        backend = self.backend
        vrings = [
            (v.size, v.base, v.addr, v.started, v.enabled, v.kick, v.call, v.err)
            for v in backend.vrings
        ]
        return (
            list(backend.memory.regions),
            astuple(backend.config),
            backend.acknowledged,
            backend.protocol_features,
            vrings,
            backend.channel,
        )

    @rule(
        message=MESSAGES,
        flags=FLAGS,
        right_count=st.booleans(),
        count=st.integers(0, 9),
        file_bytes=st.sampled_from([FILE_BYTES, FILE_BYTES, 4096]),
    )
    def say(
        self,
        message: tuple[int, bytes],
        flags: int,
        right_count: bool,
        count: int,
        file_bytes: int,
    ) -> None:
        request, payload = message
        fds = [
            CountedFd(file_bytes)
            for _ in range(usual_count(request, payload) if right_count else count)
        ]
        self.given += fds
        before = self.state()
        try:
            effects = self.backend.handle(Message(request, flags, payload), fds)
        except FrontendError:
            assert self.state() == before
            assert [fd.closings for fd in fds] == [1] * len(fds)
            return
        wants_ack = bool(
            flags & FLAG_NEED_REPLY and self.backend.protocol_features & ProtocolFeature.REPLY_ACK
        )
        stop_vrings(self.backend, effects)
        assert answers(effects) == int(request in ALWAYS_ANSWERED or wants_ack)
        if before[0] != self.state()[0]:
            assert effects[0] == StopDevice()
            assert RingsChanged() in effects

    @rule(running=st.booleans())
    def hang_up_and_come_again(self, running: bool) -> None:
        self.backend.close()
        assert all(fd.closings == 1 for fd in self.given)
        self.connect(running)

    @rule()
    def hand_over_to_another(self) -> None:
        """What replay says of this state leads a fresh back-end, under all its checks, to it."""
        other, doubles = fresh(), dict[int, CountedFd]()
        for encoded, fds in replay(self.backend):
            request, flags, size = HEADER.unpack_from(encoded)
            assert len(encoded) == HEADER.size + size
            given = [doubles.setdefault(id(fd), twin(fd)) for fd in fds]
            other.handle(Message(request, flags, encoded[HEADER.size :]), given)
        assert [region.description for region in other.memory.regions] == [
            region.description for region in self.backend.memory.regions
        ]
        for ours, theirs in zip(self.backend.vrings, other.vrings, strict=True):
            assert (ours.size, ours.base, ours.addr, ours.started, ours.enabled) == (
                theirs.size,
                theirs.base,
                theirs.addr,
                theirs.started,
                theirs.enabled,
            )
            for fd, double in ((ours.kick, theirs.kick), (ours.call, theirs.call)):
                assert double is doubles.get(id(fd))
        assert other.channel is doubles.get(id(self.backend.channel))
        ready, again = self.backend.ready_vrings(), other.ready_vrings()
        assert [(vring.index, vring.queue) for vring in again] == [
            (vring.index, vring.queue) for vring in ready
        ]

    @invariant()
    def every_descriptor_is_held_or_closed_once(self) -> None:
        held = self.held()
        assert all(fd.closings == (0 if fd in held else 1) for fd in self.given)
        assert len({id(fd) for fd in held}) == len(held)

    @invariant()
    def what_is_ready_is_complete(self) -> None:
        ready = self.backend.ready_vrings()
        assert not ready or (
            ready[0].queue is BalloonQueue.INFLATEQ and self.backend.memory.regions
        )
        for vring in ready:
            said_so_far = self.backend.vrings[vring.index]
            assert said_so_far.started
            assert said_so_far.enabled
            assert vring.size in (1, 128, 32768)
            assert vring.kick.fileno() >= 0
            assert vring.call is None or vring.call.fileno() >= 0


def twin(fd: object) -> CountedFd:
    """Another descriptor of the same file."""
    assert isinstance(fd, CountedFd)
    return CountedFd(fd.file_bytes, fd.page_bytes)


def usual_count(request: int, payload: bytes) -> int:
    """How many descriptors a sensible front-end sends with a message."""
    if request == Q.SET_MEM_TABLE and len(payload) >= 4:
        return min(9, int.from_bytes(payload[:4], "little"))
    if request in (Q.SET_VRING_KICK, Q.SET_VRING_CALL, Q.SET_VRING_ERR):
        return 0 if len(payload) > 1 and payload[1] & 1 else 1
    return int(request in (Q.ADD_MEM_REG, Q.SET_BACKEND_REQ_FD))


def answers(effects: Sequence[Effect]) -> int:
    """How many replies a front-end gets; each is one whole message."""
    sent = [effect.reply for effect in effects if isinstance(effect, Send)]
    assert all(len(reply) == HEADER.size + HEADER.unpack_from(reply)[2] for reply in sent)
    return len(sent) + sum(isinstance(effect, AnswerVringBase) for effect in effects)


AnyFrontend.TestCase.settings = settings(max_examples=25, stateful_step_count=40)
test_backend_of_any_frontend_keeps_its_promises = AnyFrontend.TestCase
