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
        """Closes the descriptor; further calls do nothing."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            # Forget the number before close(2), which frees it even if it fails. Another file may
            # get the number at once, and a second close would then close that file.
            os.close(fd)

    def detach(self) -> int:
        """Gives the descriptor away: returns its number, which another owner has to close."""
        fd, self._fd = self._fd, -1
        return fd

    def duplicate(self) -> "OwnedFd":
        """Another descriptor of the same file, close-on-exec."""
        return OwnedFd(os.dup(self._fd))

    def __del__(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            self.close()


def drain_event(fd: int) -> bool:
    """Resets a non-blocking eventfd, whether or not it was signalled.

    A front-end may send any kind of descriptor as a kick. Whatever its kind, this function reads
    at most eight bytes and never waits.

    Returns:
        False where the descriptor will never have an event: it is at its end of file, or cannot be
        read. epoll reports it as readable all the same, so the caller must stop watching it.
    """
    try:
        return bool(os.read(fd, 8))
    except BlockingIOError:
        return True
    except OSError:
        return False


_ONE = (1).to_bytes(8, "little")


def signal_event(fd: int) -> None:
    """Adds one to an eventfd; if its counter is full, it is signalled already.

    A front-end may send any kind of descriptor as a call: if the descriptor takes no bytes, its
    guest gets no interrupts, and no other guest is affected.
    """
    # contextlib.suppress() would cost more than the write, and this runs once for each buffer.
    try:  # noqa: SIM105
        os.write(fd, _ONE)
    except OSError:
        pass


def allow_all_fds() -> int:
    """Raises this process's soft limit of descriptors to the hard limit: a VM needs some forty.

    The soft limit is 1024 by default for the sake of select(2), which balloond does not use.

    Returns:
        The new limit.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
