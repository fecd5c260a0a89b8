"""vhost-user's layouts: what one end encodes the other decodes, and garbage raises one error."""

from hypothesis import given, settings
from hypothesis import strategies as st

from balloon_daemon.errors import FrontendError
from balloon_daemon.units import FrontendAddr, GuestAddr
from balloon_daemon.vhost_user.messages import (
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
)

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
FRONTEND = U64.map(FrontendAddr)
REGIONS = st.builds(RegionDescription, U64.map(GuestAddr), U64, FRONTEND, U64)
DECODERS = st.sampled_from(
    [
        decode_u64,
        decode_vring_state,
        decode_vring_addr,
        decode_single_region,
        decode_memory_table,
        decode_config_access,
    ]
)


def carrying(payload: bytes, request: int = FrontendRequest.SET_CONFIG) -> Message:
    return Message(request, VERSION, payload)


@given(st.builds(VringState, U32, U32))
def test_vring_state_round_trip(state: VringState) -> None:
    assert decode_vring_state(carrying(state.encode())) == state


@given(st.builds(VringAddr, U32, U32, FRONTEND, FRONTEND, FRONTEND, U64))
def test_vring_addr_round_trip(addr: VringAddr) -> None:
    assert decode_vring_addr(carrying(addr.encode())) == addr


@given(REGIONS)
def test_single_region_round_trip(region: RegionDescription) -> None:
    assert decode_single_region(carrying(region.encode_single())) == region


@given(st.lists(REGIONS, max_size=8))
def test_memory_table_round_trip(regions: list[RegionDescription]) -> None:
    assert decode_memory_table(carrying(encode_memory_table(regions))) == regions


@given(st.builds(ConfigAccess, U32, U32, st.binary(max_size=64)))
def test_config_access_round_trip(access: ConfigAccess) -> None:
    assert decode_config_access(carrying(access.encode())) == access


@settings(max_examples=300)
@given(DECODERS, st.sampled_from(list(FrontendRequest)), st.binary(max_size=400))
def test_decoding_garbage_gives_a_value_or_a_frontend_error(
    decode: object, request: FrontendRequest, payload: bytes
) -> None:
    assert callable(decode)
    try:
        decode(carrying(payload, request))
    except FrontendError as err:
        refused = err.request
    else:
        refused = request.name
    assert refused == request.name
