"""A driver's access to a split virtqueue, without any checks.

Unlike the fake guest's ring it keeps no record of chains: any descriptor, index and head can be
written at any time, as by a hostile driver.
"""

from collections.abc import Sequence

from balloon_daemon.virtio.split_queue import (
    DESCRIPTOR,
    USED_ELEMENT,
    VIRTQ_DESC_F_NEXT,
    VIRTQ_DESC_F_WRITE,
    available_bytes,
    descriptors_bytes,
    used_bytes,
)


def area_offsets(size: int) -> tuple[int, int, int]:
    """The offsets of available ring, used ring and end behind the descriptor table."""
    available = descriptors_bytes(size)
    used = -(-(available + available_bytes(size)) // 4) * 4
    return available, used, used + used_bytes(size)


class RawRing:
    """The three areas of one ring.

    Args:
        memory: writable bytes, 16-aligned; the ring begins at their start.
        size: entries.
    """

    def __init__(self, memory: memoryview, size: int) -> None:
        available, used, end = area_offsets(size)
        self.size = size
        self.descriptors = memory[: descriptors_bytes(size)]
        self.available = memory[available : available + available_bytes(size)]
        self.used = memory[used:end]
        self._available16 = self.available.cast("H")
        self._used16 = self.used.cast("H")
        self._collected = self.used_idx

    @classmethod
    def private(cls, size: int) -> "RawRing":
        """A ring in memory of its own."""
        return cls(memoryview(bytearray(area_offsets(size)[2])), size)

    @property
    def areas(self) -> tuple[memoryview, memoryview, memoryview]:
        """Descriptor table, available ring, used ring, in SplitQueue's order."""
        return self.descriptors, self.available, self.used

    @property
    def avail_idx(self) -> int:
        return self._available16[1]

    @avail_idx.setter
    def avail_idx(self, index: int) -> None:
        self._available16[1] = index & 0xFFFF

    @property
    def used_idx(self) -> int:
        return self._used16[1]

    @used_idx.setter
    def used_idx(self, index: int) -> None:
        self._used16[1] = index & 0xFFFF

    def start_at(self, index: int) -> None:
        """Makes an empty ring look as if ``index`` chains had gone through it."""
        self.avail_idx = self.used_idx = self._collected = index

    def set_flags(self, flags: int) -> None:
        """The available ring's flags."""
        self._available16[0] = flags

    def describe(
        self, index: int, addr: int, length: int, flags: int = 0, following: int = 0
    ) -> None:
        """Writes one descriptor."""
        DESCRIPTOR.pack_into(
            self.descriptors, index * DESCRIPTOR.size, addr, length, flags, following
        )

    def place(self, head: int) -> None:
        """Writes the next entry of the available ring without making it available."""
        self._available16[2 + self.avail_idx % self.size] = head

    def offer(self, head: int) -> None:
        """Makes a head available, valid or not."""
        self.place(head)
        self.avail_idx += 1

    def chain(
        self,
        indices: Sequence[int],
        readable: Sequence[tuple[int, int]],
        writable: Sequence[tuple[int, int]] = (),
    ) -> int:
        """Writes a valid chain over these descriptors. Returns its head; makes nothing
        available."""
        parts = [(*part, 0) for part in readable]
        parts += [(*part, VIRTQ_DESC_F_WRITE) for part in writable]
        for place, (addr, length, flags) in enumerate(parts[:-1]):
            following = indices[place + 1]
            self.describe(indices[place], addr, length, flags | VIRTQ_DESC_F_NEXT, following)
        self.describe(indices[len(parts) - 1], *parts[-1])
        return indices[0]

    def collect(self) -> list[tuple[int, int]]:
        """(id, length) of each used element since the last call."""
        elements = []
        while self._collected != self.used_idx:
            offset = 4 + USED_ELEMENT.size * (self._collected % self.size)
            elements.append(USED_ELEMENT.unpack_from(self.used, offset))
            self._collected = (self._collected + 1) & 0xFFFF
        return elements
