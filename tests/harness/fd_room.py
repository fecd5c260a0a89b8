"""Lets a process run out of file descriptors, nearly or wholly."""

import contextlib
import os
import resource
from collections.abc import Iterator


@contextlib.contextmanager
def room_for_fds(count: int) -> Iterator[None]:
    """Lets this process open so many more descriptors, and then no other until it closes some."""
    lowest_free = [os.dup(0) for _ in range(count + 1)]
    for fd in lowest_free:
        os.close(fd)
    with no_fds_from(lowest_free[-1]):
        yield


@contextlib.contextmanager
def no_fds_from(lowest: int) -> Iterator[None]:
    """Lets this process open no descriptor of that number or above, even if it is closed there."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def open_fds() -> set[str]:
    """The descriptors that this process has open: number and file."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the descriptor of the listing itself
            found.add(f"{number} {os.readlink(f'/proc/self/fd/{number}')}")
    return found
