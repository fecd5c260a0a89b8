"""Decisions derived from a fuzzer's bytes, so that a mutated byte changes a decision."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

INTERESTING = (
    0, 1, 2, 3, 7, 8, 15, 16, 17, 127, 128, 255, 256, 4095, 4096, 4097, 32767, 32768, 65535, 65536,
    2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 4096, 2**64 - 1,
)  # fmt: skip
"""Numbers at which programs often behave differently."""


class Choices:
    """Bytes, read from the front; zeros once they are used up.

    Args:
        data: the fuzzer's bytes.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        """Whether any bytes are left."""
        return self._at < len(self._data)

    def take(self, length: int) -> bytes:
        """The next bytes; fewer where the data ends."""
        part = self._data[self._at : self._at + length]
        self._at += length
        return part

    def rest(self) -> bytes:
        """All remaining bytes."""
        return self.take(len(self._data))

    def number(self, length: int) -> int:
        """A little-endian number of so many bytes."""
        return int.from_bytes(self.take(length), "little")

    def below(self, limit: int) -> int:
        """A number from 0 up to ``limit``, which is at most 65536, exclusive."""
        return self.number(1 if limit <= 256 else 2) % limit

    def pick(self, options: Sequence[T]) -> T:
        """One of at most 65536 options."""
        return options[self.below(len(options))]

    def chance(self, of_256: int) -> bool:
        """True so many times in 256."""
        return self.number(1) >= 256 - of_256

    def wide(self, length: int) -> int:
        """A number of so many bytes, often one at which programs behave differently."""
        if self.chance(160):
            return self.pick(INTERESTING) % (1 << 8 * length)
        return self.number(length)
