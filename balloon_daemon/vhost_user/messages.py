"""vhost-user messages: their numbers and layouts, both ways.

Pure. Source: QEMU's "Vhost-user Protocol": header, payloads, front-end and back-end message types.
All fields are in the host's byte order; balloond runs on little-endian hosts only.
"""

import struct
from enum import IntEnum, IntFlag

from balloon_daemon.errors import FrontendError
from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.units import FrontendAddr, GuestAddr

HEADER = struct.Struct("<III")
"""request, flags, size of the payload in bytes."""

VERSION = 0x1
VERSION_MASK = 0x3
FLAG_REPLY = 0x4
FLAG_NEED_REPLY = 0x8

MAX_PAYLOAD_BYTES = 4096
"""No payload of the protocol is longer; a longer payload is refused unread."""

MAX_FDS = 32
"""The largest number of file descriptors beside one message. The specification's table has eight
regions, but the front-ends of Cloud Hypervisor and crosvm send up to 32 (MAX_ATTACHED_FD_ENTRIES
of rust-vmm's vhost)."""

VHOST_USER_F_PROTOCOL_FEATURES = 1 << 30
VRING_INDEX_MASK = 0xFF
VRING_NOFD_MASK = 0x100
"""In SET_VRING_KICK/CALL/ERR: no file descriptor comes with the message."""


class FrontendRequest(IntEnum):
    """Messages from the front-end (the VMM), section "Front-end message types"."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    NET_SET_MTU = 20
    SET_BACKEND_REQ_FD = 21
    IOTLB_MSG = 22
    SET_VRING_ENDIAN = 23
    GET_CONFIG = 24
    SET_CONFIG = 25
    CREATE_CRYPTO_SESSION = 26
    CLOSE_CRYPTO_SESSION = 27
    POSTCOPY_ADVISE = 28
    POSTCOPY_LISTEN = 29
    POSTCOPY_END = 30
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    GPU_SET_SOCKET = 33
    RESET_DEVICE = 34
    VRING_KICK = 35
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40
    GET_SHARED_OBJECT = 41
    SET_DEVICE_STATE_FD = 42
    CHECK_DEVICE_STATE = 43


class BackendRequest(IntEnum):
    """Messages that the back-end sends on its own channel (SET_BACKEND_REQ_FD)."""

    IOTLB_MSG = 1
    CONFIG_CHANGE_MSG = 2


class ProtocolFeature(IntFlag):
    """Protocol feature bits, section "Protocol features"."""

    MQ = 1 << 0
    LOG_SHMFD = 1 << 1
    RARP = 1 << 2
    REPLY_ACK = 1 << 3
    NET_MTU = 1 << 4
    BACKEND_REQ = 1 << 5
    CROSS_ENDIAN = 1 << 6
    CRYPTO_SESSION = 1 << 7
    PAGEFAULT = 1 << 8
    CONFIG = 1 << 9
    BACKEND_SEND_FD = 1 << 10
    HOST_NOTIFIER = 1 << 11
    INFLIGHT_SHMFD = 1 << 12
    RESET_DEVICE = 1 << 13
    INBAND_NOTIFICATIONS = 1 << 14
    CONFIGURE_MEM_SLOTS = 1 << 15
    STATUS = 1 << 16


OFFERED_PROTOCOL_FEATURES = (
    ProtocolFeature.MQ
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.BACKEND_REQ
    | ProtocolFeature.BACKEND_SEND_FD
    | ProtocolFeature.CONFIG
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
    | ProtocolFeature.RESET_DEVICE
)
"""RESET_DEVICE is offered so that a front-end reports that its guest begins anew. STATUS would
report that too but is not offered, because QEMU 11.1's generic vhost-user device fails with it;
SET_STATUS from a front-end that sends it unasked is still understood."""


class Message(NamedTuple):
    """One message without its file descriptors.

    Attributes:
        request: the raw number, which the specification may not define.
        flags: version, reply and need-reply bits.
        payload: the bytes after the header.
    """

    request: int
    flags: int
    payload: bytes

    @property
    def name(self) -> str:
        """The front-end request's name in the specification, or its number."""
        try:
            return FrontendRequest(self.request).name
        except ValueError:
            return f"request {self.request}"

    def encode(self) -> bytes:
        """Header and payload, ready to send."""
        return HEADER.pack(self.request, self.flags, len(self.payload)) + self.payload


def decode_message(content: bytes) -> Message:
    """Decodes one whole message.

    Raises:
        FrontendError: its length is not what its header says.
    """
    if len(content) < HEADER.size:
        raise FrontendError("header", f"of only {len(content)} bytes")
    request, flags, size = HEADER.unpack_from(content)
    message = Message(request, flags, content[HEADER.size :])
    if len(message.payload) != size:
        raise FrontendError(message.name, f"says {size} bytes, has {len(message.payload)}")
    return message


def encode_request(request: FrontendRequest, payload: bytes = b"", *, ack: bool = False) -> bytes:
    """A front-end's message; ``ack`` requests an acknowledgement (REPLY_ACK)."""
    return Message(request, VERSION | (FLAG_NEED_REPLY if ack else 0), payload).encode()


def encode_reply(request: int, payload: bytes) -> bytes:
    """A back-end's reply. QEMU accepts only flags that are exactly version 1 and the reply bit."""
    return HEADER.pack(request, VERSION | FLAG_REPLY, len(payload)) + payload


CONFIG_CHANGE_MSG = HEADER.pack(BackendRequest.CONFIG_CHANGE_MSG, VERSION, 0)
"""The whole back-end message that tells the front-end of a changed config space."""

U64 = struct.Struct("<Q")
VRING_STATE = struct.Struct("<II")
VRING_ADDR = struct.Struct("<IIQQQQ")
CONFIG_HEADER = struct.Struct("<III")
REGION = struct.Struct("<QQQQ")
MEMORY_HEADER = struct.Struct("<II")
SINGLE_REGION = struct.Struct("<QQQQQ")


class VringState(NamedTuple):
    """SET_VRING_NUM, _BASE, _ENABLE and GET_VRING_BASE: a ring's index and a number."""

    index: int  # type: ignore[assignment] # hides tuple.index(), which nobody calls
    num: int

    def encode(self) -> bytes:
        return VRING_STATE.pack(self.index, self.num)


class VringAddr(NamedTuple):
    """SET_VRING_ADDR: where a ring's three areas are, in the front-end's addresses."""

    index: int  # type: ignore[assignment] # hides tuple.index(), which nobody calls
    flags: int
    descriptors: FrontendAddr
    used: FrontendAddr
    available: FrontendAddr
    log: int = 0

    def encode(self) -> bytes:
        return VRING_ADDR.pack(
            self.index, self.flags, self.descriptors, self.used, self.available, self.log
        )


class RegionDescription(NamedTuple):
    """One memory region, as SET_MEM_TABLE, ADD_MEM_REG and REM_MEM_REG carry it.

    Attributes:
        guest_addr: guest-physical address of its first byte.
        size_bytes: its length.
        frontend_addr: the address of that byte in the front-end.
        mmap_offset_bytes: where the region begins in its file.
    """

    guest_addr: GuestAddr
    size_bytes: int
    frontend_addr: FrontendAddr
    mmap_offset_bytes: int

    def encode(self) -> bytes:
        return REGION.pack(
            self.guest_addr, self.size_bytes, self.frontend_addr, self.mmap_offset_bytes
        )

    def encode_single(self) -> bytes:
        return bytes(8) + self.encode()


class ConfigAccess(NamedTuple):
    """GET_CONFIG and SET_CONFIG: ``content`` at ``offset`` of the config space."""

    offset: int
    flags: int
    content: bytes

    def encode(self) -> bytes:
        return CONFIG_HEADER.pack(self.offset, len(self.content), self.flags) + self.content


_CONFIG_REPLY = struct.Struct("<IIIIII")
_GET_CONFIG = int(FrontendRequest.GET_CONFIG)


def encode_config_reply(access: ConfigAccess, content: bytes) -> bytes:
    """GET_CONFIG's reply: the content at the requested offset."""
    payload_bytes = CONFIG_HEADER.size + len(content)
    head = (_GET_CONFIG, VERSION | FLAG_REPLY, payload_bytes)
    return _CONFIG_REPLY.pack(*head, access.offset, len(content), access.flags) + content


def encode_memory_table(regions: list[RegionDescription]) -> bytes:
    """SET_MEM_TABLE's payload; one file descriptor for each region goes with it."""
    return MEMORY_HEADER.pack(len(regions), 0) + b"".join(r.encode() for r in regions)


def _unpack(layout: struct.Struct, message: Message) -> tuple[int, ...]:
    if len(message.payload) != layout.size:
        raise FrontendError(
            message.name, f"payload of {len(message.payload)} bytes, it takes {layout.size}"
        )
    return layout.unpack(message.payload)


def decode_u64(message: Message) -> int:
    """Decodes a payload of one u64. Raises FrontendError for any other length."""
    return _unpack(U64, message)[0]


def decode_vring_state(message: Message) -> VringState:
    """Decodes a ring's index and number. Raises FrontendError for another length."""
    return VringState(*_unpack(VRING_STATE, message))


def decode_vring_addr(message: Message) -> VringAddr:
    """Decodes SET_VRING_ADDR. Raises FrontendError for another length."""
    index, flags, descriptors, used, available, log = _unpack(VRING_ADDR, message)
    return VringAddr(
        index, flags, FrontendAddr(descriptors), FrontendAddr(used), FrontendAddr(available), log
    )


def _region(fields: tuple[int, ...]) -> RegionDescription:
    guest_addr, size_bytes, frontend_addr, mmap_offset_bytes = fields
    return RegionDescription(
        GuestAddr(guest_addr), size_bytes, FrontendAddr(frontend_addr), mmap_offset_bytes
    )


def decode_single_region(message: Message) -> RegionDescription:
    """Decodes ADD_MEM_REG and REM_MEM_REG. Raises FrontendError for another length."""
    return _region(_unpack(SINGLE_REGION, message)[1:])


def decode_memory_table(message: Message) -> list[RegionDescription]:
    """Decodes SET_MEM_TABLE.

    Raises:
        FrontendError: a count that does not match the payload's length, or over ``MAX_FDS``
            regions.
    """
    if len(message.payload) < MEMORY_HEADER.size:
        raise FrontendError(message.name, f"payload of only {len(message.payload)} bytes")
    count, _ = MEMORY_HEADER.unpack_from(message.payload)
    table = message.payload[MEMORY_HEADER.size :]
    # A front-end may send its whole array of eight regions, with only the first `count` of them
    # filled.
    if count > MAX_FDS or len(table) < count * REGION.size or len(table) % REGION.size:
        raise FrontendError(
            message.name, f"{count} regions in {len(table)} bytes, at most {MAX_FDS}"
        )
    return [_region(fields) for fields in REGION.iter_unpack(table[: count * REGION.size])]


def decode_config_access(message: Message) -> ConfigAccess:
    """Decodes GET_CONFIG and SET_CONFIG.

    A GET_CONFIG may carry as many blank bytes as it asks for, or none.

    Raises:
        FrontendError: shorter than its header, or its size is not that of its content.
    """
    if len(message.payload) < CONFIG_HEADER.size:
        raise FrontendError(message.name, f"payload of only {len(message.payload)} bytes")
    offset, size, flags = CONFIG_HEADER.unpack_from(message.payload)
    content = message.payload[CONFIG_HEADER.size :]
    if not content and message.request == FrontendRequest.GET_CONFIG and size <= MAX_PAYLOAD_BYTES:
        content = bytes(size)
    if len(content) != size:
        raise FrontendError(message.name, f"says {size} bytes of config, carries {len(content)}")
    return ConfigAccess(offset, flags, content)
