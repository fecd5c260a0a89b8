"""handover/state.py: a guest's state as bytes, and everything that is none."""

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balloon_daemon.errors import StateFileError
from balloon_daemon.handover.state import (
    VERSION,
    GuestState,
    SavedMessage,
    decode_state,
    encode_state,
)
from balloon_daemon.sizing.balloon_policy import PolicyState

STATE = GuestState(
    name="vm1",
    handled=60,
    num_pages=512,
    actual=256,
    vm_mem_bytes=4 << 30,
    policy=PolicyState(3, None, 1234.5),
    connection=1,
    journal=2,
    life=9,
    messages=(SavedMessage(b"\x01\x02", (3, 4)), SavedMessage(b"", ())),
)

numbers = st.integers(0, 1 << 31)
seconds = st.none() | st.floats(0, 1e9)
states = st.builds(
    GuestState,
    name=st.integers(1, 10**18 - 1).map("vm{}".format),
    handled=numbers,
    num_pages=numbers,
    actual=numbers,
    vm_mem_bytes=numbers,
    policy=st.none() | st.builds(PolicyState, st.integers(0, 16), seconds, seconds),
    connection=numbers,
    journal=numbers,
    life=st.none() | numbers,
    messages=st.lists(
        st.builds(SavedMessage, st.binary(max_size=64), st.lists(numbers, max_size=3).map(tuple)),
        max_size=5,
    ).map(tuple),
)


@given(states)
def test_state_encoded_and_decoded_is_the_same(state: GuestState) -> None:
    assert decode_state(encode_state(state)) == state


@pytest.mark.parametrize("number", [10**9, 1 << 40])
def test_state_of_a_vm_that_came_after_a_billion_connections_is_read(number: int) -> None:
    state = STATE._replace(name=f"vm{number}")
    assert decode_state(encode_state(state)) == state


def test_state_names_all_of_its_descriptors() -> None:
    assert STATE.fds() == {1, 2, 3, 4, 9}


@given(st.data())
def test_state_with_any_byte_changed_is_refused(data: st.DataObject) -> None:
    content = bytearray(encode_state(STATE))
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))

    with pytest.raises(StateFileError):
        decode_state(bytes(content))


@given(st.binary(max_size=200))
def test_state_of_arbitrary_bytes_is_refused(content: bytes) -> None:
    with pytest.raises(StateFileError):
        decode_state(content)


@pytest.mark.parametrize("version", [0, VERSION + 1])
def test_state_of_another_version_names_both(version: int) -> None:
    content = encode_state(STATE).replace(b"state %d " % VERSION, b"state %d " % version, 1)

    with pytest.raises(
        StateFileError, match=f"is of version {version}, this balloond reads version {VERSION}"
    ):
        decode_state(content)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("handled", -1),
        ("handled", 1.5),
        ("handled", True),
        ("actual", 1 << 32),
        ("name", 7),
        ("policy", [1]),
        ("policy", [1, "soon", None]),
        ("policy", [1, float("inf"), None]),
        ("policy", [1, int("9" * 400), None]),
        ("policy", [1, True, None]),
        ("name", "\ud800"),
        ("name", "vm1\n"),
        ("messages", [["zz", []]]),
        ("messages", [["00", ["x"]]]),
        ("messages", {}),
        ("connection", None),
    ],
)
def test_state_with_a_field_that_cannot_be_is_refused(key: str, value: object) -> None:
    body = json.loads(encode_state(STATE).partition(b"\n")[2])
    body[key] = value
    text = json.dumps(body).encode()
    head = f"balloond guest state {VERSION} {hashlib.sha256(text).hexdigest()}\n".encode()

    with pytest.raises(StateFileError, match="is damaged"):
        decode_state(head + text)


def test_state_nested_beyond_any_sense_is_refused() -> None:
    text = b"[" * 100_000
    head = f"balloond guest state {VERSION} {hashlib.sha256(text).hexdigest()}\n".encode()

    with pytest.raises(StateFileError, match="is damaged"):
        decode_state(head + text)
