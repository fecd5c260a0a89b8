"""The driver's side of a split virtqueue (virtio 1.3, 2.7).

Runs in the fake guest's process. Written from the specification, and sharing only constants with
the device's side in ``virtio/split_queue.py``: if both ends had code in common, their agreement
would prove nothing.
"""

from collections.abc import Sequence

from balloon_daemon.fake_guest.styles import Ring
from balloon_daemon.units import PAGE_SIZE, GuestAddr
from balloon_daemon.virtio.guest_memory import GuestMemory
from balloon_daemon.virtio.split_queue import (
    DESCRIPTOR,
    USED_ELEMENT,
    VIRTQ_AVAIL_F_NO_INTERRUPT,
    VIRTQ_DESC_F_NEXT,
    VIRTQ_DESC_F_WRITE,
    VIRTQ_USED_F_NO_NOTIFY,
)

Buffer = tuple[int, int]
"""Guest-physical address and length in bytes."""


def _layout(size: int) -> tuple[int, int, int]:
    """Offsets of available and used ring behind the descriptor table, and the end, in bytes."""
    available = DESCRIPTOR.size * size
    # The available ring has flags, idx, an entry for each descriptor, and used_event, of 2 bytes
    # each. The used ring begins on a page of its own, as in Linux.
    used = -(-(available + 6 + 2 * size) // PAGE_SIZE) * PAGE_SIZE
    end = used + 6 + USED_ELEMENT.size * size
    return available, used, -(-end // PAGE_SIZE) * PAGE_SIZE


def ring_bytes(size: int) -> int:
    """The size of guest memory for a queue of ``size`` entries, in whole pages."""
    return _layout(size)[2]


class DriverQueue:
    """A virtqueue as a driver uses it.

    Args:
        index: the queue's number.
        size: its entries, a power of two.
        memory: the guest's memory.
        addr: page-aligned guest-physical address of ``ring_bytes(size)`` bytes for its areas.

    Raises:
        ValueError: the areas are not inside one region.
    """

    def __init__(self, index: int, size: int, memory: GuestMemory, addr: int) -> None:
        available, used, end = _layout(size)
        view = memory.view(addr, end)
        if view is None:
            raise ValueError(f"no room for a ring of {end} bytes at {addr:#x}")
        view[:] = bytes(end)
        self.ring = Ring(
            index, size, GuestAddr(addr), GuestAddr(addr + available), GuestAddr(addr + used)
        )
        self.size = size
        self._descriptors = view[:available]
        # memoryview.cast("H") loads and stores an index as one aligned u16, so neither side ever
        # sees half of a new index.
        self._available = view[available : available + 6 + 2 * size].cast("H")
        self._used = view[used : used + 6 + USED_ELEMENT.size * size]
        self._used16 = self._used.cast("H")
        self._free = list(range(size - 1, -1, -1))
        self._chains: dict[int, list[int]] = {}
        self._used_seen = 0

    @property
    def free_descriptors(self) -> int:
        """Descriptors that are in no chain."""
        return len(self._free)

    @property
    def outstanding(self) -> int:
        """Chains whose used entry has not been seen yet."""
        return len(self._chains)

    def suppress_interrupts(self, *, suppress: bool) -> None:
        """Tells the device whether it may leave out its calls (virtio 1.3, 2.7.7)."""
        self._available[0] = VIRTQ_AVAIL_F_NO_INTERRUPT if suppress else 0

    def add(self, readable: Sequence[Buffer], writable: Sequence[Buffer] = ()) -> int:
        """Makes a chain available.

        Args:
            readable: the parts that the device may read, in order.
            writable: the parts that it may write, after those.

        Returns:
            The chain's head, which ``collect`` returns later.

        Raises:
            ValueError: no parts, or more than there are free descriptors.
        """
        parts = [(addr, length, 0) for addr, length in readable]
        parts += [(addr, length, VIRTQ_DESC_F_WRITE) for addr, length in writable]
        if not 1 <= len(parts) <= len(self._free):
            raise ValueError(f"a chain of {len(parts)}, {len(self._free)} descriptors free")
        chain = [self._free.pop() for _ in parts]
        for place, (addr, length, flags) in enumerate(parts):
            last = place + 1 == len(parts)
            DESCRIPTOR.pack_into(
                self._descriptors,
                chain[place] * DESCRIPTOR.size,
                addr,
                length,
                flags if last else flags | VIRTQ_DESC_F_NEXT,
                0 if last else chain[place + 1],
            )
        head = chain[0]
        self._chains[head] = chain
        index = self._available[1]
        self._available[2 + index % self.size] = head
        # Store the index last: the device may read the entry and its descriptors as soon as the
        # index covers them (virtio 1.3, 2.7.13.3).
        self._available[1] = (index + 1) & 0xFFFF
        return head

    def wants_kick(self) -> bool:
        """Whether the device wants a notification (virtio 1.3, 2.7.10)."""
        return not self._used16[0] & VIRTQ_USED_F_NO_NOTIFY

    def collect(self) -> list[tuple[int, int]]:
        """The chains that the device has used since the last call.

        Returns:
            (head, bytes written according to the device) of each chain, in the device's order.

        Raises:
            RuntimeError: the device used a chain that was not available, or more chains than there
                are. A real driver marks the device as broken then.
        """
        index = self._used16[1]
        done: list[tuple[int, int]] = []
        while self._used_seen != index:
            head, written = USED_ELEMENT.unpack_from(
                self._used, 4 + USED_ELEMENT.size * (self._used_seen % self.size)
            )
            chain = self._chains.pop(head, None)
            if chain is None:
                raise RuntimeError(f"queue {self.ring.index}: id {head} is not a head!")
            self._free.extend(reversed(chain))
            self._used_seen = (self._used_seen + 1) & 0xFFFF
            done.append((head, written))
        return done
