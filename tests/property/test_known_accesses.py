"""A config access that is answered by what an earlier one began with, against the long way."""

from dataclasses import dataclass, field
from functools import partial

from hypothesis import given
from hypothesis import strategies as st

from balloon_daemon.units import PAGE_SIZE, NumPages
from balloon_daemon.vhost_user.backend import Backend
from balloon_daemon.vhost_user.effects import ActualWritten, Effect, Send
from balloon_daemon.vhost_user.known_accesses import HEAD_BYTES, MOST_KNOWN, KnownAccesses
from balloon_daemon.vhost_user.messages import (
    U64,
    ConfigAccess,
    FrontendRequest,
    Message,
    ProtocolFeature,
    decode_message,
    encode_request,
)
from tests.fakes.counted_fd import CountedFd
from tests.fakes.told_backend import fresh, say, set_up

GET, SET = FrontendRequest.GET_CONFIG, FrontendRequest.SET_CONFIG


@dataclass
class Answers:
    """A back-end, and whether accesses to it are answered the quick way where that is possible."""

    quick: bool
    backend: Backend = field(default_factory=fresh)
    answered_again: int = 0

    def __post_init__(self) -> None:
        self.known = KnownAccesses(self.backend.driver, self.backend.vrings[0])

    def take(self, request: bytes) -> tuple[bytes, bool]:
        """The reply to an access, and whether ``actual`` was written."""
        if self.quick and (answer := self.known.answer(request)) is not None:
            self.answered_again += 1
            return answer
        message = decode_message(request)
        effects: list[Effect] = self.backend.handle(message, ())
        reply = b"".join(effect.reply for effect in effects if isinstance(effect, Send))
        self.known.learn(message, reply)
        return reply, any(isinstance(effect, ActualWritten) for effect in effects)

    def tell(self, message: Message) -> None:
        """Another request than an access."""
        self.known.forget()
        self.backend.handle(message, ())


def requests() -> st.SearchStrategy[bytes]:
    def request(number: FrontendRequest, offset: int, content: bytes, ack: bool) -> bytes:
        return encode_request(number, ConfigAccess(offset, 1, content).encode(), ack=ack)

    contents = st.binary(max_size=20) | st.binary(min_size=16, max_size=16)
    return st.builds(
        request,
        st.sampled_from([GET, SET]),
        st.sampled_from([0, 0, 4, 8]),
        contents,
        st.booleans(),
    )


@given(
    running=st.booleans(),
    with_acks=st.booleans(),
    accesses=st.lists(requests(), min_size=1, max_size=3),
    repeated=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1 << 32))),
)
def test_access_that_repeats_itself_is_answered_as_the_first_was(
    running: bool, with_acks: bool, accesses: list[bytes], repeated: list[tuple[int, int]]
) -> None:
    make = partial(set_up, [0]) if running else fresh
    quick, slow = Answers(quick=True, backend=make()), Answers(quick=False, backend=make())
    for each in (quick, slow):
        if with_acks:
            features = U64.pack(ProtocolFeature.REPLY_ACK)
            request = encode_request(FrontendRequest.SET_PROTOCOL_FEATURES, features)
            each.tell(decode_message(request))
    for place, target in [(0, 0), *repeated]:
        access = accesses[place % len(accesses)]
        for each in (quick, slow):
            each.backend.set_target(target * PAGE_SIZE)
        assert quick.take(access) == slow.take(access)
        assert quick.backend.config == slow.backend.config
        assert quick.backend.driver == slow.backend.driver


def running() -> Answers:
    return Answers(quick=True, backend=set_up([0]))


def access(number: FrontendRequest, *, ack: bool = False, size: int = 16) -> bytes:
    return encode_request(number, ConfigAccess(0, 0, bytes(size)).encode(), ack=ack)


def test_second_write_is_answered_without_the_back_end() -> None:
    answers = running()
    answers.take(access(SET))
    answers.take(access(SET))
    assert answers.answered_again == 1


def test_access_is_left_to_the_back_end_until_the_inflateq_runs() -> None:
    answers = Answers(quick=True)
    answers.take(access(GET))
    answers.take(access(GET))
    assert answers.answered_again == 0
    say(answers.backend, FrontendRequest.SET_VRING_KICK, U64.pack(0), [CountedFd()])
    answers.take(access(GET))
    assert answers.answered_again == 1


def test_write_that_may_be_of_a_poison_val_is_left_to_the_back_end() -> None:
    answers = Answers(quick=True)
    answers.take(access(SET))
    answers.take(access(SET))
    assert answers.answered_again == 0


def test_another_request_forgets_who_wants_acknowledgements() -> None:
    answers = running()
    assert answers.take(access(SET, ack=True))[0] == b""
    features = U64.pack(ProtocolFeature.REPLY_ACK)
    answers.tell(decode_message(encode_request(FrontendRequest.SET_PROTOCOL_FEATURES, features)))
    assert len(answers.take(access(SET, ack=True))[0]) == 20


def test_two_accesses_at_once_or_half_of_one_are_not_known() -> None:
    answers = running()
    answers.take(access(SET))
    assert answers.known.answer(access(SET)) is not None
    answers.backend.driver.config.actual = NumPages(7)
    assert answers.known.answer(access(SET) + access(GET)) is None
    assert answers.known.answer(access(SET)[:-1]) is None
    assert answers.known.answer(access(SET)[: HEAD_BYTES - 1]) is None
    assert answers.known.answer(b"") is None
    assert answers.backend.driver.config.actual == 7


def test_a_front_end_that_asks_in_many_ways_fills_no_memory() -> None:
    answers = running()
    for size in range(MOST_KNOWN + 1):
        answers.take(access(SET, size=size))
    assert answers.known.answer(access(SET, size=MOST_KNOWN - 1)) is not None
    assert answers.known.answer(access(SET, size=MOST_KNOWN)) is None
