"""handover/state.py: a VM's state as bytes, and everything that is none."""

import hashlib
import json
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from tests.harness.faults import fault

STATE = GuestState(
    vm=VmId(1, "web server"),
    row=VmRow(4 << 30, 3, None, 1234.5),
    jailed=JailedGuest(
        handled=60,
        num_pages=512,
        actual=256,
        connection=1,
        journal=2,
        stderr_pipe=9,
        messages=(SavedMessage(b"\x01\x02", (3, 4)), SavedMessage(b"", ())),
    ),
)

V1 = {
    "messages": [["0102", [3, 4]], ["", []]],
    "name": "vm1",
    "handled": 60,
    "num_pages": 512,
    "actual": 256,
    "vm_mem_bytes": 4 << 30,
    "policy": [3, None, 1234.5],
    "connection": 1,
    "journal": 2,
    "life": 9,
}

numbers = st.integers(0, 1 << 31)
seconds = st.none() | st.floats(0, 1e9)
messages = st.lists(
    st.builds(SavedMessage, st.binary(max_size=64), st.lists(numbers, max_size=3).map(tuple)),
    max_size=5,
).map(tuple)
states = st.builds(
    GuestState,
    vm=st.builds(VmId, st.integers(1, 10**18 - 1), st.text("abz 7-é", min_size=1, max_size=64)),
    row=st.none() | st.builds(VmRow, numbers, st.integers(0, 16), seconds, seconds),
    jailed=st.builds(
        JailedGuest,
        handled=numbers,
        num_pages=numbers,
        actual=numbers,
        connection=numbers,
        journal=numbers,
        stderr_pipe=st.none() | numbers,
        messages=messages,
    ),
)


def signed(body: bytes, version: int = VERSION) -> bytes:
    """A state of any bytes, with the checksum that its version has."""
    checksum = hashlib.sha256(body).hexdigest() if version == 1 else f"{zlib.crc32(body):08x}"
    return f"balloond guest state {version} {checksum}\n".encode() + body


@given(states)
def test_state_encoded_and_decoded_is_the_same(state: GuestState) -> None:
    decoded = decode_state(EncodedMessages().encode(state))

    assert decoded == state
    assert decoded.vm.name == state.vm.name


@given(states, messages, messages)
def test_state_whose_messages_were_encoded_before_is_the_same(
    state: GuestState, first: tuple[SavedMessage, ...], second: tuple[SavedMessage, ...]
) -> None:
    whole = state.jailed._replace(messages=first + second + state.jailed.messages)

    encoded = EncodedMessages(second, EncodedMessages(first))

    assert encoded.encode(state) == EncodedMessages().encode(state._replace(jailed=whole))
    assert encoded.fds == {fd for message in first + second for fd in message.fds}


@fault("more than a billion connections before a VM's")
@pytest.mark.parametrize("number", [10**9, 1 << 40])
def test_state_of_a_vm_that_came_after_a_billion_connections_is_read(number: int) -> None:
    state = STATE._replace(vm=VmId(number, f"vm{number}"))
    assert decode_state(EncodedMessages().encode(state)) == state


def test_state_names_all_of_its_descriptors() -> None:
    assert STATE.jailed.fds() == {1, 2, 3, 4, 9}


@fault("state of another version, damaged, or with descriptors missing")
@given(st.data())
def test_state_with_any_byte_changed_is_refused(data: st.DataObject) -> None:
    content = bytearray(EncodedMessages().encode(STATE))
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))

    with pytest.raises(StateFileError):
        decode_state(bytes(content))


@given(st.binary(max_size=200))
def test_state_of_arbitrary_bytes_is_refused(content: bytes) -> None:
    with pytest.raises(StateFileError):
        decode_state(content)


@pytest.mark.parametrize("version", [0, VERSION + 1])
def test_state_of_another_version_names_all(version: int) -> None:
    content = (
        EncodedMessages().encode(STATE).replace(b"state %d " % VERSION, b"state %d " % version, 1)
    )

    with pytest.raises(
        StateFileError,
        match=f"is of version {version}, this balloond reads versions 1 and {VERSION}",
    ):
        decode_state(content)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("jailed.handled", -1),
        ("jailed.handled", 1.5),
        ("jailed.handled", True),
        ("jailed.actual", 1 << 32),
        ("jailed.messages", [["zz", []]]),
        ("jailed.messages", [["00", ["x"]]]),
        ("jailed.messages", {}),
        ("jailed.connection", None),
        ("vm.number", "1"),
        ("vm.number", -1),
        ("vm.name", 7),
        ("vm.name", ""),
        ("vm.name", "x" * 65),
        ("vm.name", "\ud800"),
        ("vm.name", "vm1\n"),
        ("vm.row", [1]),
        ("vm.row.level", None),
        ("vm.row.vm_mem_bytes", -1),
        ("vm.row.recheck_at_s", "soon"),
        ("vm.row.recheck_at_s", float("inf")),
        ("vm.row.recheck_at_s", int("9" * 400)),
        ("vm.row.release_at_s", True),
    ],
)
def test_state_with_a_field_that_cannot_be_is_refused(path: str, value: object) -> None:
    body = json.loads(EncodedMessages().encode(STATE).partition(b"\n")[2])
    place: Any = body
    *parts, key = path.split(".")
    for part in parts:
        place = place[part]
    place[key] = value

    with pytest.raises(StateFileError, match="is damaged"):
        decode_state(signed(json.dumps(body).encode()))


@pytest.mark.parametrize("version", [1, VERSION])
@pytest.mark.parametrize("body", [b"[" * 100_000, b"7", b"[]", b'{"vm": 1, "jailed": 2}'])
def test_state_that_is_nothing_of_the_kind_is_refused(version: int, body: bytes) -> None:
    with pytest.raises(StateFileError, match="is damaged"):
        decode_state(signed(body, version))


def test_state_of_version_1_says_the_same() -> None:
    state = STATE._replace(vm=VmId(1, "vm1"))

    assert decode_state(signed(json.dumps(V1).encode(), 1)) == state


def test_state_of_version_1_without_a_policy_has_no_row() -> None:
    body = V1 | {"policy": None, "vm_mem_bytes": 0, "life": None}

    state = decode_state(signed(json.dumps(body).encode(), 1))

    assert (state.row, state.jailed.stderr_pipe) == (None, None)


@given(st.data())
def test_state_of_version_1_with_any_byte_changed_is_refused(data: st.DataObject) -> None:
    content = bytearray(signed(json.dumps(V1).encode(), 1))
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))

    with pytest.raises(StateFileError):
        decode_state(bytes(content))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", 7),
        ("name", "web"),
        ("name", "vm1\n"),
        ("policy", [1]),
        ("policy", [1, "soon", None]),
        ("policy", 7),
        ("messages", {}),
        ("handled", -1),
        ("life", "x"),
    ],
)
def test_state_of_version_1_with_a_field_that_cannot_be_is_refused(
    key: str, value: object
) -> None:
    with pytest.raises(StateFileError, match="is damaged"):
        decode_state(signed(json.dumps(V1 | {key: value}).encode(), 1))
