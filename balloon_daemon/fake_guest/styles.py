"""How VMMs differ in their use of vhost-user, and values that a front-end needs.

Source: the messages of QEMU 11.1 and of crosvm's vhost-user front-end, as recorded.
"""

from dataclasses import dataclass

from balloon_daemon.units import GuestAddr
from balloon_daemon.vhost_user.messages import ProtocolFeature

CONFIG_WRITABLE = 1
"""VHOST_USER_CONFIG_F_WRITABLE: crosvm sets this flag in its accesses, QEMU does not."""


@dataclass(frozen=True, slots=True)
class Style:
    """One VMM's use of vhost-user.

    Attributes:
        name: the VMM's name.
        protocol_features: the offered features that it uses.
        whole_config: True: every config write covers the whole space, with the other bytes from a
            cache.
        kick_value: the value of a new kick eventfd; QEMU's is readable from the start.
    """

    name: str
    protocol_features: ProtocolFeature
    whole_config: bool
    kick_value: int


QEMU = Style(
    "qemu",
    ProtocolFeature.MQ
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.BACKEND_REQ
    | ProtocolFeature.BACKEND_SEND_FD
    | ProtocolFeature.CONFIG
    | ProtocolFeature.CONFIGURE_MEM_SLOTS,
    whole_config=True,
    kick_value=1,
)
QEMU_WITHOUT_SLOTS = Style(
    "qemu-mem-table",
    QEMU.protocol_features & ~ProtocolFeature.CONFIGURE_MEM_SLOTS,
    whole_config=True,
    kick_value=1,
)
CROSVM = Style(
    "crosvm",
    ProtocolFeature.MQ | ProtocolFeature.BACKEND_REQ | ProtocolFeature.CONFIG,
    whole_config=False,
    kick_value=0,
)
STYLES = {style.name: style for style in (QEMU, QEMU_WITHOUT_SLOTS, CROSVM)}


@dataclass(frozen=True, slots=True)
class Ring:
    """A configured queue's three areas, in guest-physical addresses.

    Attributes:
        index: the queue's number.
        size: its entries.
        descriptors: address of the descriptor table.
        available: address of the available ring.
        used: address of the used ring.
        base: the available index to begin at; 0 after a reset.
    """

    index: int
    size: int
    descriptors: GuestAddr
    available: GuestAddr
    used: GuestAddr
    base: int = 0


@dataclass(slots=True)
class FrontendCounters:
    """Counters of messages between front-end and back-end."""

    requests: int = 0
    config_reads: int = 0
    config_writes: int = 0
    config_changes: int = 0
    early_config_changes: int = 0
    """CONFIG_CHANGE_MSG while no ring ran, which balloond must not send."""


@dataclass(slots=True)
class Vring:
    """A queue as the machine provides it: its eventfds, and whether a driver configured it."""

    kick: int
    call: int
    err: int
    configured: bool = False
