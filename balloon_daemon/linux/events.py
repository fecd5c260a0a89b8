"""File descriptors and eventfds as owned objects."""

import contextlib
import os
import resource


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
            fd, self._fd = self._fd, -1
            # Whatever close(2) says, the number is free on Linux and may be somebody else's next.
            os.close(fd)

    def detach(self) -> int:
        """Gives the descriptor away: its number, for another owner."""
        fd, self._fd = self._fd, -1
        return fd

    def duplicate(self) -> "OwnedFd":
        """Another descriptor of the same file, close-on-exec."""
        return OwnedFd(os.dup(self._fd))

    def __del__(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            self.close()


def drain_event(fd: int) -> bool:
    """Resets a non-blocking eventfd; fine where nothing is in it.

    A front-end may hand over any kind of descriptor as a kick: whatever it is, this takes at most
    eight bytes from it and never waits.

    Returns:
        False where nothing will ever come out of it: it is at its end, or cannot be read. It
        stays readable all the same, so nobody must wait for it any more.
    """
    try:
        return bool(os.read(fd, 8))
    except BlockingIOError:
        return True
    except OSError:
        return False


_ONE = (1).to_bytes(8, "little")


def signal_event(fd: int) -> None:
    """Adds one to an eventfd; a full one is already signalled.

    A front-end may hand over any kind of descriptor as a call: one that takes nothing costs its
    guest the interrupts, and nobody else anything.
    """
    # Not contextlib.suppress(): it costs more than all else here, once for each buffer.
    try:  # noqa: SIM105
        os.write(fd, _ONE)
    except OSError:
        pass


def allow_all_fds() -> int:
    """Raises our soft limit of descriptors to the hard one: a VM costs some forty of them.

    The soft limit is 1024 by default for the sake of select(2), which nothing here uses.

    Returns:
        The limit.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
