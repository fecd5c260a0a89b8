"""Target: a guest's state as another balloond left it, whole, changed, or made up.

StateFileError is the only way to refuse one. One that is accepted comes out as it went in, and
says nothing that could not be.
"""

import hashlib

from balloon_daemon.errors import StateFileError
from balloon_daemon.handover.state import (
    VERSION,
    GuestState,
    SavedMessage,
    decode_state,
    encode_state,
)
from balloon_daemon.sizing.balloon_policy import PolicyState
from balloon_daemon.vhost_user.messages import FrontendRequest, encode_request
from tests.harness.enemies.choices import Choices
from tests.harness.invariants import require

_WHOLE = GuestState(
    name="vm1",
    handled=40,
    num_pages=1024,
    actual=512,
    vm_mem_bytes=1 << 29,
    policy=PolicyState(3, 12.5, None),
    connection=0,
    journal=1,
    life=2,
    messages=(
        SavedMessage(encode_request(FrontendRequest.SET_FEATURES, bytes(8)), ()),
        SavedMessage(encode_request(FrontendRequest.SET_VRING_KICK, bytes(8)), (3,)),
    ),
)


def run(data: bytes) -> None:
    """One state, then the same bytes as the body of a state with a right checksum."""
    choices = Choices(data)
    kind = choices.below(4)
    if kind == 0:
        _decode(choices.rest())
    elif kind == 1:
        content = bytearray(encode_state(_WHOLE))
        while choices:
            content[choices.below(len(content))] = choices.number(1)
        if bytes(content) != encode_state(_WHOLE):
            require(_decode(bytes(content)) is None, "a damaged state is taken", bytes(content))
    elif kind == 2:
        _decode(_signed(choices.rest()))
    else:
        state = _WHOLE._replace(
            name=choices.take(choices.below(9)).decode("latin-1"),
            handled=choices.wide(7),
            num_pages=choices.number(4),
            actual=choices.number(4),
            life=choices.pick((None, 0, 9)),
            policy=choices.pick((None, PolicyState(choices.below(17), None, choices.number(3)))),
            messages=(SavedMessage(choices.rest(), (4, 5)),),
        )
        decoded = _decode(encode_state(state))
        require(decoded is None or decoded == state, "another state comes out", state, decoded)


def _signed(body: bytes) -> bytes:
    digest = hashlib.sha256(body).hexdigest()
    return f"balloond guest state {VERSION} {digest}\n".encode() + body


def _decode(content: bytes) -> GuestState | None:
    try:
        state = decode_state(content)
    except StateFileError as err:
        require(str(err), "refused without a reason")
        return None
    numbers = [state.handled, state.num_pages, state.actual, state.vm_mem_bytes, *state.fds()]
    require(all(type(n) is int and n >= 0 for n in numbers), "a number that is none", state)
    require(max(state.num_pages, state.actual) < 1 << 32, "more pages than fit", state)
    require(decode_state(encode_state(state)) == state, "another state comes out", state)
    return state
