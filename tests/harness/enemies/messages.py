"""Front-end messages derived from a fuzzer's choices: mostly plausible, with any field possibly
not."""

from balloon_daemon.units import FrontendAddr, GuestAddr
from balloon_daemon.vhost_user import messages as wire
from balloon_daemon.vhost_user.messages import FrontendRequest as Request
from balloon_daemon.virtio.balloon import OFFERED_FEATURES, BalloonFeature
from tests.harness.enemies.choices import Choices

FRONTEND_BASE = 0x7F00_0000_0000
_REQUESTS = list(Request)
_USUAL = [
    Request.SET_MEM_TABLE,
    Request.ADD_MEM_REG,
    Request.REM_MEM_REG,
    Request.SET_FEATURES,
    Request.SET_PROTOCOL_FEATURES,
    Request.SET_VRING_NUM,
    Request.SET_VRING_ADDR,
    Request.SET_VRING_BASE,
    Request.SET_VRING_KICK,
    Request.SET_VRING_CALL,
    Request.SET_VRING_ENABLE,
    Request.GET_VRING_BASE,
    Request.GET_CONFIG,
    Request.SET_CONFIG,
    Request.SET_BACKEND_REQ_FD,
]
_RARER = (
    Request.RESET_DEVICE,
    Request.SET_STATUS,
    Request.GET_STATUS,
    Request.RESET_OWNER,
)
"""Listed last, so that recorded inputs keep their meaning."""
_FEATURES = (
    int(OFFERED_FEATURES & ~BalloonFeature.PAGE_POISON) | wire.VHOST_USER_F_PROTOCOL_FEATURES,
    int(OFFERED_FEATURES),
    wire.VHOST_USER_F_PROTOCOL_FEATURES,
    1 << 32,
    0,
)

_RIGHTFUL = wire.RegionDescription(GuestAddr(0), 64 * 4096, FrontendAddr(FRONTEND_BASE), 0)


def random_message(choices: Choices) -> tuple[bytes, int]:
    """One message, and how many descriptors should come with it."""
    if choices.chance(32):
        request: int = choices.pick(_REQUESTS) if choices.chance(128) else choices.wide(4)
    else:
        number = choices.number(1)
        rarer = number - 256 + len(_RARER)
        request = _USUAL[number % len(_USUAL)] if rarer < 0 else _RARER[rarer]
    payload, count = _payload(request, choices)
    if choices.chance(16):
        payload = payload[: choices.below(len(payload) + 1)] + choices.take(choices.below(24))
    flags = wire.VERSION | (wire.FLAG_NEED_REPLY if choices.chance(128) else 0)
    if choices.chance(8):
        flags = choices.wide(4)
    message = wire.Message(request, flags, payload).encode()
    if choices.chance(8):
        size = choices.wide(4)
        message = wire.HEADER.pack(request, flags, size) + payload
    return message, count


def rightful_start(rings: int) -> list[tuple[bytes, int]]:
    """The messages of a correct front-end: memory and rings, all running.

    Messages sent after them reach a back-end that has state to lose.
    """
    features = wire.U64.pack(_FEATURES[0])
    said = [
        (wire.encode_request(Request.SET_FEATURES, features), 0),
        (wire.encode_request(Request.SET_MEM_TABLE, wire.encode_memory_table([_RIGHTFUL])), 1),
        (wire.encode_request(Request.SET_BACKEND_REQ_FD), 1),
    ]
    for index in range(rings):
        at = FRONTEND_BASE + index * 4096
        descriptors, used, available = map(FrontendAddr, (at, at + 2048, at + 1024))
        addr = wire.VringAddr(index, 0, descriptors, used, available)
        number = wire.U64.pack(index)
        said += [
            (wire.encode_request(Request.SET_VRING_NUM, wire.VringState(index, 8).encode()), 0),
            (wire.encode_request(Request.SET_VRING_ADDR, addr.encode()), 0),
            (wire.encode_request(Request.SET_VRING_CALL, number), 1),
            (wire.encode_request(Request.SET_VRING_KICK, number), 1),
            (wire.encode_request(Request.SET_VRING_ENABLE, wire.VringState(index, 1).encode()), 0),
        ]
    return said


def _payload(request: int, choices: Choices) -> tuple[bytes, int]:
    match request:
        case Request.SET_FEATURES:
            return wire.U64.pack(_one_of(_FEATURES, choices)), 0
        case Request.SET_PROTOCOL_FEATURES:
            offered = int(wire.OFFERED_PROTOCOL_FEATURES)
            return wire.U64.pack(_one_of((offered, offered & ~8, 0), choices)), 0
        case Request.SET_STATUS:
            return wire.U64.pack(_one_of((0, 1, 15), choices)), 0
        case Request.SET_MEM_TABLE:
            regions = [_region(choices) for _ in range(choices.below(5))]
            if choices.chance(8):
                regions *= 3
            return wire.encode_memory_table(regions), len(regions)
        case Request.ADD_MEM_REG | Request.REM_MEM_REG:
            return _region(choices).encode_single(), request == Request.ADD_MEM_REG
        case Request.SET_VRING_NUM:
            return _state(choices, (1, 2, 8, 128, 256, 32768, 65536, 3)), 0
        case Request.SET_VRING_BASE | Request.GET_VRING_BASE | Request.SET_VRING_ENABLE:
            return _state(choices, (1, 1, 0, 65535)), 0
        case Request.SET_VRING_ADDR:
            return _addresses(choices).encode(), 0
        case Request.SET_VRING_KICK | Request.SET_VRING_CALL | Request.SET_VRING_ERR:
            without = choices.chance(24)
            index = _index(choices) | (wire.VRING_NOFD_MASK if without else 0)
            return wire.U64.pack(index), not without
        case Request.GET_CONFIG | Request.SET_CONFIG:
            content = choices.take(choices.below(20)) if choices.chance(128) else bytes(16)
            offset = choices.wide(4) if choices.chance(64) else 0
            return wire.ConfigAccess(offset, choices.below(3), content).encode(), 0
        case Request.SET_BACKEND_REQ_FD:
            return b"", 1
        case _:
            return choices.take(choices.below(48)), 0


def _one_of(options: tuple[int, ...], choices: Choices) -> int:
    return choices.wide(8) if choices.chance(16) else choices.pick(options)


def _index(choices: Choices) -> int:
    return choices.number(1) if choices.chance(12) else choices.below(5)


def _state(choices: Choices, numbers: tuple[int, ...]) -> bytes:
    number = choices.wide(4) if choices.chance(16) else choices.pick(numbers)
    index = choices.wide(4) if choices.chance(8) else _index(choices)
    return wire.VringState(index, number).encode()


def _region(choices: Choices) -> wire.RegionDescription:
    """Mostly whole pages of a 64-page file, at places that often touch or overlap."""
    if choices.chance(48):
        return _RIGHTFUL
    page = choices.below(64)
    guest, size, frontend = page * 4096, (1 + choices.below(32)) * 4096, page * 4096
    offset = choices.below(64) * 4096 if choices.chance(64) else 0
    frontend += FRONTEND_BASE
    if choices.chance(24):
        guest = choices.wide(8)
    if choices.chance(16):
        size = choices.wide(8)
    if choices.chance(16):
        frontend = choices.wide(8)
    if choices.chance(16):
        offset = choices.wide(8)
    return wire.RegionDescription(GuestAddr(guest), size, FrontendAddr(frontend), offset)


def _addresses(choices: Choices) -> wire.VringAddr:
    addresses = [
        choices.wide(8) if choices.chance(16) else FRONTEND_BASE + choices.below(4096) * 16
        for _ in range(3)
    ]
    descriptors, used, available = map(FrontendAddr, addresses)
    return wire.VringAddr(_index(choices), 0, descriptors, used, available)
