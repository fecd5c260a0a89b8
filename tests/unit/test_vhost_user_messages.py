"""vhost-user's layouts: byte for byte as the protocol says, and every other length refused."""

from collections.abc import Callable

import pytest

from balloon_daemon.errors import FrontendError
from balloon_daemon.units import FrontendAddr, GuestAddr
from balloon_daemon.vhost_user.messages import (
    CONFIG_CHANGE_MSG,
    MAX_PAYLOAD_BYTES,
    OFFERED_PROTOCOL_FEATURES,
    VERSION,
    ConfigAccess,
    FrontendRequest,
    Message,
    RegionDescription,
    VringAddr,
    VringState,
    decode_config_access,
    decode_memory_table,
    decode_single_region,
    decode_u64,
    decode_vring_addr,
    decode_vring_state,
    encode_memory_table,
    encode_reply,
    encode_request,
)

Q = FrontendRequest


def message(request: Q, payload: bytes) -> Message:
    return Message(request, VERSION, payload)


def words(text: str) -> bytes:
    """Bytes from hex digits in groups."""
    return bytes.fromhex(text.replace(" ", ""))


def test_request_is_header_and_payload() -> None:
    encoded = encode_request(Q.SET_FEATURES, b"\x01\x02")
    assert encoded == words("02000000 01000000 02000000 0102")


def test_request_that_wants_an_answer_has_the_need_reply_bit() -> None:
    assert encode_request(Q.SET_OWNER, ack=True) == words("03000000 09000000 00000000")


def test_reply_has_flags_of_exactly_five() -> None:
    # QEMU compares the whole word: version 1 and the reply bit.
    assert encode_reply(Q.GET_FEATURES, b"\xff") == words("01000000 05000000 01000000 ff")


def test_config_change_message_is_a_request_without_payload() -> None:
    assert words("02000000 01000000 00000000") == CONFIG_CHANGE_MSG


def test_offered_protocol_features_are_mq_ack_channel_config_slots_and_reset() -> None:
    bits = {bit for bit in range(64) if OFFERED_PROTOCOL_FEATURES >> bit & 1}
    assert bits == {0, 3, 5, 9, 10, 13, 15}


@pytest.mark.parametrize(
    ("request_", "name"), [(24, "GET_CONFIG"), (0, "request 0"), (99, "request 99")]
)
def test_name_of_a_request_is_the_specifications_or_its_number(request_: int, name: str) -> None:
    assert Message(request_, 1, b"").name == name


def test_vring_addr_is_descriptors_used_available_log() -> None:
    payload = words(
        "02000000 01000000 1000000000000000 2000000000000000 3000000000000000 ff00000000000000"
    )
    addr = VringAddr(2, 1, FrontendAddr(0x10), FrontendAddr(0x20), FrontendAddr(0x30), 0xFF)
    assert decode_vring_addr(message(Q.SET_VRING_ADDR, payload)) == addr
    assert addr.encode() == payload


REGION = RegionDescription(GuestAddr(0x1000), 0x2000, FrontendAddr(0x3000), 0x4000)
REGION_BYTES = words("0010000000000000 0020000000000000 0030000000000000 0040000000000000")


def test_single_region_has_eight_bytes_of_padding_before_it() -> None:
    assert REGION.encode_single() == bytes(8) + REGION_BYTES
    decoded = decode_single_region(message(Q.ADD_MEM_REG, b"\xee" * 8 + REGION_BYTES))
    assert decoded == REGION


def test_memory_table_is_count_padding_and_regions() -> None:
    payload = words("02000000 00000000") + REGION_BYTES * 2
    assert encode_memory_table([REGION, REGION]) == payload
    assert decode_memory_table(message(Q.SET_MEM_TABLE, payload)) == [REGION, REGION]


def test_memory_table_with_unused_entries_gives_the_used_ones() -> None:
    # Nine: rust-vmm's front-ends send up to 32, more than the specification's eight.
    nine = words("09000000 00000000") + REGION_BYTES * 9
    assert decode_memory_table(message(Q.SET_MEM_TABLE, nine)) == [REGION] * 9
    payload = words("01000000 00000000") + REGION_BYTES + bytes(7 * 32)
    assert decode_memory_table(message(Q.SET_MEM_TABLE, payload)) == [REGION]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        bytes(7),
        words("01000000 00000000"),
        words("02000000 00000000") + REGION_BYTES,
        words("01000000 00000000") + REGION_BYTES[:-1],
        words("01000000 00000000") + REGION_BYTES + b"\x00",
        words("21000000 00000000") + REGION_BYTES * 33,
        words("ffffffff 00000000") + REGION_BYTES,
    ],
    ids=["empty", "half", "none", "short", "cut", "long", "many", "endless"],
)
def test_memory_table_that_its_length_does_not_bear_out_is_refused(payload: bytes) -> None:
    with pytest.raises(FrontendError, match="SET_MEM_TABLE"):
        decode_memory_table(message(Q.SET_MEM_TABLE, payload))


@pytest.mark.parametrize(
    ("decode", "size"),
    [
        (decode_u64, 8),
        (decode_vring_state, 8),
        (decode_vring_addr, 40),
        (decode_single_region, 40),
    ],
)
def test_fixed_payload_of_any_other_length_is_refused(
    decode: Callable[[Message], object], size: int
) -> None:
    decode(message(Q.SET_FEATURES, bytes(size)))
    for length in {*range(2 * size), MAX_PAYLOAD_BYTES} - {size}:
        with pytest.raises(FrontendError, match=f"payload of {length} bytes"):
            decode(message(Q.SET_FEATURES, bytes(length)))


def test_config_access_is_offset_size_flags_content() -> None:
    payload = words("04000000 02000000 01000000 aabb")
    assert ConfigAccess(4, 1, b"\xaa\xbb").encode() == payload
    assert decode_config_access(message(Q.SET_CONFIG, payload)) == ConfigAccess(4, 1, b"\xaa\xbb")


def test_get_config_without_a_blank_is_as_long_as_it_says() -> None:
    payload = words("00000000 10000000 00000000")
    assert decode_config_access(message(Q.GET_CONFIG, payload)) == ConfigAccess(0, 0, bytes(16))


@pytest.mark.parametrize(
    ("request_", "payload"),
    [
        (Q.GET_CONFIG, b""),
        (Q.GET_CONFIG, bytes(11)),
        (Q.GET_CONFIG, words("00000000 ffffffff 00000000")),
        (Q.GET_CONFIG, words("00000000 04000000 00000000 0000")),
        (Q.SET_CONFIG, words("00000000 10000000 00000000")),
        (Q.SET_CONFIG, words("00000000 01000000 00000000 0000")),
    ],
)
def test_config_access_with_another_size_than_its_content_is_refused(
    request_: Q, payload: bytes
) -> None:
    with pytest.raises(FrontendError, match=request_.name):
        decode_config_access(message(request_, payload))


def test_vring_state_is_index_and_number() -> None:
    assert VringState(3, 0x8000).encode() == words("03000000 00800000")
