"""The device's side of a split virtqueue in shared memory (virtio 1.3, 2.7).

Pure: memory arrives as memoryviews. The driver may write to all three areas at any moment and
may be hostile, so every field is read once, the copy is checked, and the copy is used.

Chains are used in the order in which they were made available, and none is answered twice. So
``used.idx`` alone records the progress, and a new process goes on from there.

Memory order: the driver publishes a chain by storing ``avail.idx`` after the ring entry, and the
device publishes by storing ``used.idx`` after the used element (2.7.13). x86-64 keeps the order of
two stores, and of two loads, by itself. On other architectures nothing guarantees that the
interpreter's work between two bytecodes is a barrier, so balloond refuses at its start to run
there.
"""

import struct

from balloon_daemon.errors import GuestError, RingError, Rule, StateError
from balloon_daemon.named_tuple import NamedTuple

MAX_QUEUE_SIZE = 32768
"""virtio 1.3, 2.7: the maximum queue size of a split virtqueue."""

VIRTQ_DESC_F_NEXT = 1
VIRTQ_DESC_F_WRITE = 2
VIRTQ_DESC_F_INDIRECT = 4
VIRTQ_AVAIL_F_NO_INTERRUPT = 1
VIRTQ_USED_F_NO_NOTIFY = 1

DESCRIPTOR = struct.Struct("<QIHH")
"""addr, len, flags, next (virtio 1.3, 2.7.5)."""

USED_ELEMENT = struct.Struct("<II")
"""id, len (virtio 1.3, 2.7.8)."""

_unpack_descriptor = DESCRIPTOR.unpack_from
_DESCRIPTOR_BYTES = DESCRIPTOR.size
_pack_used = USED_ELEMENT.pack_into
_USED_ELEMENT_BYTES = USED_ELEMENT.size
_MORE_THAN_READABLE = VIRTQ_DESC_F_NEXT | VIRTQ_DESC_F_WRITE | VIRTQ_DESC_F_INDIRECT


def descriptors_bytes(size: int) -> int:
    """Length of the descriptor table of a queue of ``size`` entries."""
    return DESCRIPTOR.size * size


def available_bytes(size: int) -> int:
    """Length of the available ring: flags, idx, ring (without ``used_event``)."""
    return 4 + 2 * size


def used_bytes(size: int) -> int:
    """Length of the used ring: flags, idx, ring (without ``avail_event``)."""
    return 4 + USED_ELEMENT.size * size


class DescriptorChain(NamedTuple):
    """One chain, copied out of the descriptor table and checked.

    A tuple, because one is made for each buffer and a frozen dataclass costs a µs more.

    Attributes:
        head: index of its first descriptor, to be given back by ``push``.
        readable: (guest-physical address, length) of each part that the device may read, in order.
        writable: (guest-physical address, length) of each part that the device may write, in
            order.
    """

    head: int
    readable: list[tuple[int, int]]
    writable: list[tuple[int, int]]


class SplitQueue:
    """One running virtqueue, device side.

    Args:
        name: the queue's name in the specification, for errors.
        size: entries; a power of two from 1 to 32768.
        descriptors: the descriptor table, ``descriptors_bytes(size)`` long.
        available: the available ring, ``available_bytes(size)`` long, 2-aligned.
        used: the used ring, ``used_bytes(size)`` long, 4-aligned, writable.

    Raises:
        StateError: a size or a length that the specification does not allow.
    """

    __slots__ = (
        "_available",
        "_descriptors",
        "_mask",
        "_used",
        "_used16",
        "name",
        "next",
        "size",
        "used_index",
    )

    def __init__(
        self,
        name: str,
        size: int,
        descriptors: memoryview,
        available: memoryview,
        used: memoryview,
    ) -> None:
        if not 1 <= size <= MAX_QUEUE_SIZE or size & (size - 1):
            raise StateError(f"{name}: queue size {size}, allowed are powers of two up to 32768")
        if (len(descriptors), len(available), len(used)) != (
            descriptors_bytes(size),
            available_bytes(size),
            used_bytes(size),
        ):
            raise StateError(f"{name}: its three areas do not have the lengths of its size")
        self.name = name
        self.size = size
        self._mask = size - 1
        self._descriptors = descriptors
        # memoryview.cast("H") reads a 16-bit field with one aligned load. With a load for each
        # byte, an index that the driver changes meanwhile could be read as half old and half new.
        self._available = available.cast("H")
        self._used = used
        self._used16 = used.cast("H")
        # Read used.idx from guest memory only once, here, and count on from it. The driver can
        # write to the used ring too, at any moment, so a later value there cannot be trusted.
        self.used_index = self._used16[1]
        """Chains answered so far, modulo 65536: the base for GET_VRING_BASE."""
        self.next = self.used_index
        """The next entry to take from the available ring, free-running modulo 65536."""

    def pending(self) -> int:
        """Chains made available and not taken yet.

        Raises:
            RingError: more than the ring can hold, so the driver's index is wrong.
        """
        count = (self._available[1] - self.next) & 0xFFFF
        if count > self.size:
            raise RingError(self.name, Rule.AVAIL_IDX, count)
        return count

    def pop(self) -> DescriptorChain:
        """Takes the next available chain; call it only while ``pending()`` is not 0.

        Raises:
            GuestError: a chain that breaks the rules. The chain has been taken: answer it with
                ``push(error.head)`` and go on.
            RingError: the entry names no descriptor, so it cannot be answered either.
        """
        head = self._available[2 + (self.next & self._mask)]
        if head >= self.size:
            raise RingError(self.name, Rule.HEAD, head)
        self.next = (self.next + 1) & 0xFFFF
        descriptor = _unpack_descriptor(self._descriptors, head * _DESCRIPTOR_BYTES)
        if not descriptor[2] & _MORE_THAN_READABLE:
            # The quick way for a single readable descriptor, as Linux sends for a buffer of PFNs;
            # `_follow` would give the same result.
            return DescriptorChain(head, [descriptor[:2]], [])
        return self._follow(head, descriptor)

    def _follow(self, head: int, descriptor: tuple[int, int, int, int]) -> DescriptorChain:
        """Follows a chain to its last descriptor; ``descriptor`` is a copy of its first."""
        readable: list[tuple[int, int]] = []
        writable: list[tuple[int, int]] = []
        # A chain has at most as many descriptors as the queue. A longer chain visits some
        # descriptor twice, and so is a loop.
        for _ in range(self.size):
            addr, length, flags, following = descriptor
            if flags & VIRTQ_DESC_F_INDIRECT:
                raise GuestError(self.name, head, Rule.INDIRECT)
            if flags & VIRTQ_DESC_F_WRITE:
                writable.append((addr, length))
            elif writable:
                raise GuestError(self.name, head, Rule.ORDER)
            else:
                readable.append((addr, length))
            if not flags & VIRTQ_DESC_F_NEXT:
                return DescriptorChain(head, readable, writable)
            if following >= self.size:
                raise GuestError(self.name, head, Rule.NEXT, following)
            descriptor = _unpack_descriptor(self._descriptors, following * _DESCRIPTOR_BYTES)
        raise GuestError(self.name, head, Rule.LOOP, self.size)

    def push(self, head: int, written_bytes: int = 0) -> None:
        """Answers a chain: puts it into the used ring and publishes it.

        Args:
            head: the chain's head, as ``pop`` gave it.
            written_bytes: how many bytes of its writable part the device wrote.
        """
        index = self.used_index
        _pack_used(self._used, 4 + _USED_ELEMENT_BYTES * (index & self._mask), head, written_bytes)
        self.used_index = self._used16[1] = (index + 1) & 0xFFFF

    def wants_call(self) -> bool:
        """Whether the driver wants a call for used chains (2.7.7, without EVENT_IDX).

        The CPU may execute this load before the store of ``used.idx``, even on x86-64, so a driver
        that asks for calls again at that moment could miss one. In practice the interpreter stores
        so much between the two that the store buffer has been drained, and Linux's balloon driver
        never switches calls off.
        """
        return not self._available[0] & VIRTQ_AVAIL_F_NO_INTERRUPT
