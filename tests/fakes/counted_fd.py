"""A file descriptor that no kernel knows, and that counts its closings."""

from itertools import count

_numbers = count(100)


class CountedFd:
    """Stands in for a descriptor that came with a message.

    Attributes:
        file_bytes: length of the file behind it.
        page_bytes: smallest piece of it that the host can free.
        refusal: why it cannot be guest memory; empty where it can.
        closings: how often it was closed; more than once would close somebody else's.
    """

    def __init__(
        self, file_bytes: int = 1 << 30, page_bytes: int = 4096, refusal: str = ""
    ) -> None:
        self.file_bytes = file_bytes
        self.page_bytes = page_bytes
        self.refusal = refusal
        self.closings = 0
        self._number = next(_numbers)

    def fileno(self) -> int:
        return -1 if self.closings else self._number

    def close(self) -> None:
        self.closings += 1


def inspect(fd: object) -> tuple[int, int]:
    """What a MemoryTable asks of a descriptor's file."""
    assert isinstance(fd, CountedFd)
    if fd.refusal:
        raise ValueError(fd.refusal)
    return fd.file_bytes, fd.page_bytes
