"""The messages between controller and device: one message a datagram, little-endian.

Pure. Down (controller to device) go the target, 8 bytes, and commands of 4 bytes. Up go typed
reports. Every number is absolute, never a difference, so the next message makes up for a lost or
repeated one. Decoding a message that the other side would never send raises TubeError: the device
then ignores that message, the controller kills the device.
"""

import struct
from enum import IntEnum
from typing import assert_never

from balloon_daemon.errors import Rule, TubeError
from balloon_daemon.fact import fact
from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.virtio.balloon import MAX_QUEUES, MAX_STATS, STAT_ENTRY

MAX_MESSAGE_BYTES = 1024
"""Longer than any message of the tube."""

_TARGET = struct.Struct("<Q")
_COMMAND = struct.Struct("<I")
_KIND = struct.Struct("<I")


class Target(NamedTuple):
    """The balloon's wanted size in bytes, absolute."""

    target_bytes: int


class Command(IntEnum):
    """Short orders to the device."""

    REQUEST_STATS = 1
    STOP = 2


Down = Target | Command


def encode_down(message: Down) -> bytes:
    """Encodes a message to the device."""
    if isinstance(message, Target):
        return _TARGET.pack(message.target_bytes)
    return _COMMAND.pack(message)


def decode_down(datagram: bytes) -> Down:
    """Decodes a message to the device; its length tells the two kinds apart.

    Raises:
        TubeError: another length, or a command that does not exist.
    """
    if len(datagram) == _TARGET.size:
        return Target(*_TARGET.unpack(datagram))
    if len(datagram) == _COMMAND.size:
        try:
            return Command(_COMMAND.unpack(datagram)[0])
        except ValueError as err:
            raise TubeError(f"command {datagram.hex()} does not exist") from err
    raise TubeError(f"message of {len(datagram)} bytes, allowed are 4 and 8")


class FaultKind(IntEnum):
    """The kind of a fault in the device; the controller words it."""

    CHAIN = 1
    """The guest broke the rules in one chain, which was dropped."""
    RING = 2
    """A ring cannot be trusted any more; its queue is stopped."""
    HOST = 3
    """The host's kernel refused to take memory back."""


@fact
class Ready(NamedTuple):
    """The device is jailed and serves its rings."""


class Progress(NamedTuple):
    """Counters of this device process since its start. Sent after work, at a limited rate.

    Attributes:
        inflated_pages: 4 KiB pages that the guest put into the balloon.
        deflated_pages: 4 KiB pages that the guest took out of the balloon.
        reported_bytes: free memory that the guest reported (VIRTIO_BALLOON_F_REPORTING).
        removed_bytes: bytes removed for the host, after inflation or report.
        removals: MADV_REMOVE calls that succeeded.
        buffers: chains answered.
        faults: chains dropped.
        freed_pages: how many of ``inflated_pages`` the kernel has freed.
        kept_pages: how many of ``inflated_pages`` lie in regions that cannot be freed.
        refused_pages: 4 KiB pages, inflated or reported, that the kernel refused to free.
        foreign_pages: pages in chains that were dropped for a page outside all memory regions.
    """

    inflated_pages: int = 0
    deflated_pages: int = 0
    reported_bytes: int = 0
    removed_bytes: int = 0
    removals: int = 0
    buffers: int = 0
    faults: int = 0
    freed_pages: int = 0
    kept_pages: int = 0
    refused_pages: int = 0
    foreign_pages: int = 0

    def plus(self, other: "Progress") -> "Progress":
        """The sums of this device's counters and those of another."""
        return Progress(*(ours + theirs for ours, theirs in zip(self, other, strict=True)))


@fact
class Stats(NamedTuple):
    """The guest's own statistics, as (tag, value) pairs; at most 64."""

    entries: tuple[tuple[int, int], ...]


class Fault(NamedTuple):
    """A fault, and how many similar faults were not reported before it.

    Attributes:
        kind: who is at fault, and what was done.
        queue: the vring's index.
        code: the ``Rule``; for HOST the errno.
        head: the chain's head descriptor index, or ``NO_HEAD``.
        detail: the value that broke the rule (a PFN, a length); for HOST the address.
        suppressed: faults since the last report that were only counted.
    """

    kind: FaultKind
    queue: int
    code: int
    head: int
    detail: int
    suppressed: int


@fact
class Stopped(NamedTuple):
    """The device ends; (vring index, ``used.idx``) pairs, for GET_VRING_BASE."""

    used_indices: tuple[tuple[int, int], ...]


Up = Ready | Progress | Stats | Fault | Stopped

_PROGRESS = struct.Struct("<11Q")
_FAULT = struct.Struct("<IIIIQQ")
_PAIR = struct.Struct("<II")


class _Kind(IntEnum):
    READY = 1
    PROGRESS = 2
    STATS = 3
    FAULT = 4
    STOPPED = 5


def encode_up(message: Up) -> bytes:
    """Encodes a report."""
    match message:
        case Ready():
            return _KIND.pack(_Kind.READY)
        case Progress():
            return _KIND.pack(_Kind.PROGRESS) + _PROGRESS.pack(*message)
        case Stats(entries):
            return _KIND.pack(_Kind.STATS) + b"".join(STAT_ENTRY.pack(*entry) for entry in entries)
        case Fault():
            return _KIND.pack(_Kind.FAULT) + _FAULT.pack(
                message.kind,
                message.queue,
                message.code,
                message.head,
                message.detail,
                message.suppressed,
            )
        case Stopped(pairs):
            return _KIND.pack(_Kind.STOPPED) + b"".join(_PAIR.pack(*pair) for pair in pairs)
        case unreachable:
            assert_never(unreachable)


def decode_up(datagram: bytes) -> Up:
    """Decodes a report, all of whose fields are checked: a guest may have taken the device over.

    Raises:
        TubeError: unknown kind, wrong length, or a field out of its range.
    """
    if len(datagram) < _KIND.size:
        raise TubeError(f"report of {len(datagram)} bytes")
    (kind,) = _KIND.unpack_from(datagram)
    body = datagram[_KIND.size :]
    if kind == _Kind.READY and not body:
        return Ready()
    if kind == _Kind.PROGRESS and len(body) == _PROGRESS.size:
        return Progress(*_PROGRESS.unpack(body))
    if kind == _Kind.STATS and not len(body) % STAT_ENTRY.size:
        if len(body) <= MAX_STATS * STAT_ENTRY.size:
            return Stats(tuple(STAT_ENTRY.iter_unpack(body)))
    elif kind == _Kind.FAULT and len(body) == _FAULT.size:
        number, queue, code, head, detail, suppressed = _FAULT.unpack(body)
        codes = range(4096) if number == FaultKind.HOST else list(Rule)
        if number in list(FaultKind) and queue < MAX_QUEUES and code in codes:
            return Fault(FaultKind(number), queue, code, head, detail, suppressed)
    elif kind == _Kind.STOPPED and not len(body) % _PAIR.size:
        pairs = tuple(_PAIR.iter_unpack(body))
        if len(pairs) <= MAX_QUEUES and all(q < MAX_QUEUES and i < 65536 for q, i in pairs):
            return Stopped(pairs)
    raise TubeError(f"report of kind {kind} with {len(body)} bytes that the device never sends")
