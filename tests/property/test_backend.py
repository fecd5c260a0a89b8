"""The back-end under any sequence of messages, sensible, wrong or neither.

What must hold: a message gives effects, or raises FrontendError and changes nothing; every
descriptor is held or was closed exactly once; whoever waits for an answer gets exactly one; what a
device is served with changes behind its end only; what cannot be served is not, and nothing at all
by a table that contradicts itself.
"""

from collections.abc import Sequence
from dataclasses import astuple, fields

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from balloon_daemon.errors import FrontendError
from balloon_daemon.units import FrontendAddr, GuestAddr
from balloon_daemon.vhost_user.effects import (
    AnswerVringBase,
    Effect,
    NotServed,
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
from balloon_daemon.vhost_user.vring import Vring
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
    Q.GET_STATUS,
}
ONLY_REFUSED = {
    *{Q.SET_LOG_FD, Q.SEND_RARP, Q.NET_SET_MTU, Q.SET_VRING_ENDIAN, Q.SET_INFLIGHT_FD},
    *{Q.GPU_SET_SOCKET, Q.VRING_KICK, Q.POSTCOPY_LISTEN},
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
    st.integers(0, 2**17 - 1),
    st.sampled_from([int(OFFERED_PROTOCOL_FEATURES)] * 3 + [2**17 - 1]),
)
CONFIGS = st.builds(
    ConfigAccess, st.integers(0, 17), st.integers(0, 2**32 - 1), st.binary(max_size=17)
)
PLAIN = [Q.GET_FEATURES, Q.GET_PROTOCOL_FEATURES, Q.GET_QUEUE_NUM, Q.GET_MAX_MEM_SLOTS]
PLAIN += [Q.SET_OWNER, Q.RESET_OWNER, Q.SET_BACKEND_REQ_FD, Q.RESET_DEVICE, Q.GET_STATUS]
RIGHT_KIND = st.sampled_from([True, True, True, False])
LENGTHS = st.sampled_from([FILE_BYTES, FILE_BYTES, 4096])
FILES = st.one_of(
    st.builds(CountedFd, LENGTHS, st.sampled_from([4096, 4096, 8192]), right_kind=RIGHT_KIND),
    st.builds(CountedFd, LENGTHS, never_freed=st.just("is a file on ext4")),
    st.builds(
        CountedFd,
        st.one_of(LENGTHS, st.none()),
        never_freed=st.just("is a file on fuse"),
        mappable=st.just(False),
        right_kind=RIGHT_KIND,
    ),
)


def said(
    requests: Sequence[int], payloads: st.SearchStrategy[bytes]
) -> st.SearchStrategy[tuple[int, bytes]]:
    return st.tuples(st.sampled_from(requests), payloads)


MESSAGES = st.one_of(
    said(PLAIN, st.just(b"")),
    said([Q.SET_FEATURES], FEATURES.map(U64.pack)),
    said([Q.SET_STATUS], st.sampled_from([0, 1, 15, 128, 2**64 - 1]).map(U64.pack)),
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
DESCRIBED = [
    *[Q.SET_VRING_NUM, Q.SET_VRING_BASE, Q.SET_VRING_ADDR],
    *[Q.SET_VRING_KICK, Q.SET_VRING_CALL, Q.SET_VRING_ENABLE],
]
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
            tuple(getattr(vring, each.name) for each in fields(Vring)) for vring in backend.vrings
        ]
        return (
            (list(backend.memory.regions), backend.memory.unsound),
            astuple(backend.driver),
            backend.acknowledged,
            backend.protocol_features,
            backend.status,
            vrings,
            backend.channel,
        )

    def served(self) -> tuple[object, ...]:
        """All that a device forked now would be given; empty where none would be."""
        vrings = self.backend.ready_vrings()
        return (*vrings, *self.backend.memory.regions, self.backend.channel) if vrings else ()

    @rule(
        message=MESSAGES,
        flags=FLAGS,
        right_count=st.booleans(),
        count=st.integers(0, 9),
        files=st.lists(FILES, min_size=9, max_size=9),
        lost=st.sampled_from([False] * 7 + [True]),
    )
    def say(
        self,
        message: tuple[int, bytes],
        flags: int,
        right_count: bool,
        count: int,
        files: list[CountedFd],
        lost: bool,
    ) -> None:
        request, payload = message
        usual = usual_count(request, payload)
        lost = lost and usual > 0
        # A file of its own each time: what Hypothesis draws it may draw again.
        fds = [fd.twin() for fd in files[: 0 if lost else usual if right_count else count]]
        self.check(Message(request, flags, payload), fds, lost=lost)

    @rule(
        index=st.integers(0, 2),
        wrong=st.sampled_from([0, 0, 1, 2]),
        order=st.permutations(DESCRIBED),
        few=st.integers(1, len(DESCRIBED)),
    )
    def describe_a_vring(self, index: int, wrong: int, order: list[Q], few: int) -> None:
        """Mostly as it should be, so that there is something to lose, and to get back."""
        for request in order[:few]:
            good, bad = described(request, index)
            takes_fd = request in (Q.SET_VRING_KICK, Q.SET_VRING_CALL)
            fds = [CountedFd(right_kind=wrong != 1)] if takes_fd else []
            payload = bad if wrong == 2 else good
            self.check(Message(request, VERSION, payload), fds)

    def check(self, message: Message, fds: list[CountedFd], *, lost: bool = False) -> None:
        """Says something, and holds the back-end to its promises."""
        request, flags, _ = message
        self.given += fds
        before, served = self.state(), self.served()
        try:
            effects = self.backend.handle(message, fds, lost=lost)
        except FrontendError:
            assert self.state() == before
            assert self.served() == served
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
        if served and served != self.served():
            assert StopDevice() in effects
            assert RingsChanged() in effects[effects.index(StopDevice()) :]
        if not served and self.served():
            assert RingsChanged() in effects
        if StopDevice() in effects:
            told = [isinstance(effect, Send) for effect in effects]
            assert not any(told[: effects.index(StopDevice())])
        whys = [effect.why for effect in effects if isinstance(effect, NotServed)]
        assert all(why.startswith(f"{Q(request).name}: ") and "\n" not in why for why in whys)
        assert len(whys) <= 1
        if request in ONLY_REFUSED:
            assert self.state() == before
            assert whys

    @rule(running=st.booleans())
    def hang_up_and_come_again(self, running: bool) -> None:
        self.backend.close()
        assert all(fd.closings == 1 for fd in self.given)
        self.connect(running)

    @rule()
    def hand_over_to_another(self) -> None:
        """What replay says of this state leads a fresh back-end, under all its checks, to it."""
        regions = self.backend.memory.regions
        other, doubles = fresh(), dict[int, CountedFd]()
        for encoded, fds in replay(self.backend):
            request, flags, size = HEADER.unpack_from(encoded)
            assert len(encoded) == HEADER.size + size
            held = [fd for fd in fds if isinstance(fd, CountedFd)]
            given = [doubles.setdefault(id(fd), fd.twin()) for fd in held]
            assert len(held) == len(fds)
            other.handle(Message(request, flags, encoded[HEADER.size :]), given)
        # What is not told on is not in the store: our own close of it would be the last.
        assert doubles.keys() == {id(fd) for fd in self.held()}
        places = [(region.description, region.fd) for region in other.memory.regions]
        assert places == [(region.description, doubles.get(id(region.fd))) for region in regions]
        # Of a file that was let go of it is not known any more why it cannot be freed.
        assert [(r.page_bytes, r.never_freed) for r in other.memory.regions if r.fd] == [
            (r.page_bytes, r.never_freed) for r in regions if r.fd
        ]
        assert all(r.never_freed for r in other.memory.regions if r.fd is None)
        for ours, theirs in zip(self.backend.vrings, other.vrings, strict=True):
            # Without a kick, and so not started: that is how it stays not served.
            kick = None if ours.unusable else ours.kick
            started = ours.started and not ours.unusable
            assert not theirs.unusable
            assert (ours.size, ours.base, ours.addr, started, ours.enabled) == (
                theirs.size,
                theirs.base,
                theirs.addr,
                theirs.started,
                theirs.enabled,
            )
            for fd, double in ((kick, theirs.kick), (ours.call, theirs.call)):
                assert double is doubles.get(id(fd))
        assert other.channel is doubles.get(id(self.backend.channel))
        assert (other.acknowledged, other.protocol_features, other.status) == (
            self.backend.acknowledged,
            self.backend.protocol_features,
            self.backend.status,
        )
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
    def nothing_is_served_that_cannot_be(self) -> None:
        memory, refusal = self.backend.memory, self.backend.refusal
        assert not (memory.unsound and memory.regions)
        assert all(region.never_freed for region in memory.regions if region.fd is None)
        files = [region.fd for region in memory.regions if isinstance(region.fd, CountedFd)]
        assert all(file.mappable for file in files)
        assert bool(refusal) == bool(
            memory.unsound or self.backend.acknowledged & ~(OFFERED_FEATURES | 1 << 30)
        )
        assert not (refusal and self.backend.ready_vrings())
        assert not (refusal and self.backend.ready_vrings(disabled=True))

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
            assert not said_so_far.unusable
            assert (
                vring.addr.descriptors % 16,
                vring.addr.available % 2,
                vring.addr.used % 4,
            ) == ((0, 0, 0))
            assert vring.size in (1, 128, 32768)
            assert vring.kick.fileno() >= 0
            assert vring.call is None or vring.call.fileno() >= 0


def described(request: Q, index: int) -> tuple[bytes, bytes]:
    """A message that describes a vring: as it should be, and as it cannot be."""
    addr = VringAddr(index, 0, *map(FrontendAddr, (0, 4096, 8192)))
    match request:
        case Q.SET_VRING_NUM:
            return VringState(index, 128).encode(), VringState(index, 3).encode()
        case Q.SET_VRING_BASE:
            return VringState(index, 0).encode(), VringState(index, 65536).encode()
        case Q.SET_VRING_ADDR:
            return addr.encode(), addr._replace(used=FrontendAddr(4097)).encode()
        case Q.SET_VRING_ENABLE:
            return VringState(index, 1).encode(), VringState(index, 0).encode()
        case _:
            return U64.pack(index), U64.pack(index)


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
