"""A file descriptor that the kernel does not know, and that counts how often it is closed."""

from collections.abc import Iterable, Iterator
from itertools import count

from balloon_daemon.vhost_user.memory_table import FileFacts

_numbers = count(100)


class CountedFd:
    """Stands in for a descriptor that came with a message.

    Attributes:
        file_bytes: length of the file behind it; None where the code must not ask for it.
        page_bytes: smallest piece of it that the host can free.
        never_freed: why no part of it can be freed; empty where it can.
        mappable: whether a device may map it.
        right_kind: whether it is of the kind that a kick, call, err (an eventfd) or channel needs.
        closings: how often it was closed; more than once would close another file's number.
    """

    def __init__(
        self,
        file_bytes: int | None = 1 << 30,
        page_bytes: int = 4096,
        never_freed: str = "",
        *,
        mappable: bool = True,
        right_kind: bool = True,
    ) -> None:
        self.file_bytes = file_bytes
        self.page_bytes = page_bytes
        self.never_freed = never_freed
        self.mappable = mappable
        self.right_kind = right_kind
        self.closings = 0
        self._number = next(_numbers)

    def fileno(self) -> int:
        return -1 if self.closings else self._number

    def close(self) -> None:
        self.closings += 1

    def twin(self) -> "CountedFd":
        """Another descriptor of the same file."""
        return CountedFd(
            self.file_bytes,
            self.page_bytes,
            self.never_freed,
            mappable=self.mappable,
            right_kind=self.right_kind,
        )


def inspect(fds: Iterable[object]) -> Iterator[FileFacts]:
    """The facts of descriptors' files, for a MemoryTable."""
    for fd in fds:
        assert isinstance(fd, CountedFd)
        yield FileFacts(fd.file_bytes, fd.page_bytes, fd.never_freed, fd.mappable)


def right_kind(_request: int, fd: object) -> bool:
    """Whether a descriptor that is no memory is of the right kind, for a Backend."""
    assert isinstance(fd, CountedFd)
    return fd.right_kind
