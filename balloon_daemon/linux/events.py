"""File descriptors and eventfds as owned objects."""

import contextlib
import os


class OwnedFd:
    """A file descriptor with one owner, who closes it once."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        """The number; -1 once closed."""
        return self._fd

    def close(self) -> None:
        """Closes it; further calls do nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            self.close()


def drain_event(fd: int) -> None:
    """Resets a non-blocking eventfd; fine where nothing is in it.

    A front-end may hand over any kind of descriptor as a kick: whatever it is, this takes at most
    eight bytes from it and never waits.
    """
    with contextlib.suppress(BlockingIOError):
        os.read(fd, 8)


_ONE = (1).to_bytes(8, "little")


def signal_event(fd: int) -> None:
    """Adds one to an eventfd; a full one is already signalled."""
    with contextlib.suppress(BlockingIOError):
        os.write(fd, _ONE)
