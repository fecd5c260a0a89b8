"""How the virtual machine monitors that we know speak vhost-user, and what a front-end deals in.

Source: the messages of QEMU 11.1 and of crosvm's vhost-user front-end, as recorded.
"""

from dataclasses import dataclass

from balloon_daemon.units import GuestAddr
from balloon_daemon.vhost_user.messages import ProtocolFeature

CONFIG_WRITABLE = 1
"""VHOST_USER_CONFIG_F_WRITABLE: crosvm sets it in its accesses, QEMU sends 0."""


@dataclass(frozen=True, slots=True)
class Style:
    """How a VMM speaks vhost-user.

    Attributes:
        name: the VMM it is like.
        protocol_features: what it takes of the features offered.
        whole_config: every config access covers the whole space, the rest from a cache.
        kick_value: what a fresh kick eventfd holds; QEMU's begin readable.
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
    """Where a configured queue's three areas are, in guest-physical addresses.

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
    """What passed between us and the back-end."""

    requests: int = 0
    config_reads: int = 0
    config_writes: int = 0
    config_changes: int = 0
    early_config_changes: int = 0
    """CONFIG_CHANGE_MSG while no ring ran, when no VMM need expect it: balloond must send none."""


@dataclass(slots=True)
class Vring:
    """A queue as the machine provides it: its eventfds, and whether a driver configured it."""

    kick: int
    call: int
    err: int
    configured: bool = False
