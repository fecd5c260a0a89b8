"""Target: a guest's state as another balloond left it, whole, changed, or made up.

StateFileError is the only way to refuse one. One that is accepted comes out as it went in, and
says nothing that could not be.
"""

import hashlib
import zlib

from balloon_daemon.errors import StateFileError
from balloon_daemon.guests.seam import VmRow
from balloon_daemon.handover.state import (
    VERSION,
    EncodedMessages,
    GuestState,
    JailedGuest,
    SavedMessage,
    decode_state,
)
from balloon_daemon.units import VmId
from balloon_daemon.vhost_user.messages import FrontendRequest, encode_request
from tests.harness.enemies.choices import Choices
from tests.harness.invariants import require

_WHOLE = GuestState(
    vm=VmId(1, "vm1"),
    row=VmRow(1 << 29, 3, 12.5, None),
    jailed=JailedGuest(
        handled=40,
        num_pages=1024,
        actual=512,
        connection=0,
        journal=1,
        stderr_pipe=2,
        messages=(
            SavedMessage(encode_request(FrontendRequest.SET_FEATURES, bytes(8)), ()),
            SavedMessage(encode_request(FrontendRequest.SET_VRING_KICK, bytes(8)), (3,)),
        ),
    ),
)


def run(data: bytes) -> None:
    """One state, then the same bytes as the body of a state with a right checksum."""
    choices = Choices(data)
    kind = choices.below(4)
    if kind == 0:
        _decode(choices.rest())
    elif kind == 1:
        content = bytearray(EncodedMessages().encode(_WHOLE))
        while choices:
            content[choices.below(len(content))] = choices.number(1)
        if bytes(content) != EncodedMessages().encode(_WHOLE):
            require(_decode(bytes(content)) is None, "a damaged state is taken", bytes(content))
    elif kind == 2:
        body = choices.rest()
        _decode(_signed(body, zlib.crc32(body).to_bytes(4).hex(), VERSION))
        _decode(_signed(body, hashlib.sha256(body).hexdigest(), 1))
    else:
        state = GuestState(
            vm=VmId(choices.number(4), choices.take(choices.below(9)).decode("latin-1")),
            row=choices.pick((None, VmRow(1 << 29, choices.below(17), None, choices.number(3)))),
            jailed=_WHOLE.jailed._replace(
                handled=choices.wide(7),
                num_pages=choices.number(4),
                actual=choices.number(4),
                stderr_pipe=choices.pick((None, 0, 9)),
                messages=(SavedMessage(choices.rest(), (4, 5)),),
            ),
        )
        decoded = _decode(EncodedMessages().encode(state))
        require(decoded is None or decoded == state, "another state comes out", state, decoded)


def _signed(body: bytes, checksum: str, version: int) -> bytes:
    return f"balloond guest state {version} {checksum}\n".encode() + body


def _decode(content: bytes) -> GuestState | None:
    try:
        state = decode_state(content)
    except StateFileError as err:
        require(str(err), "refused without a reason")
        return None
    jailed = state.jailed
    numbers = [state.vm.number, jailed.handled, jailed.num_pages, jailed.actual, *jailed.fds()]
    numbers += [] if state.row is None else [state.row.vm_mem_bytes, state.row.level]
    require(all(type(n) is int and n >= 0 for n in numbers), "a number that is none", state)
    require(max(jailed.num_pages, jailed.actual) < 1 << 32, "more pages than fit", state)
    require(
        decode_state(EncodedMessages().encode(state)) == state, "another state comes out", state
    )
    return state
