"""Guests of next to no memory, many of them in one process: for footprint and reaction.

Each has a connection, rings in a few pages and no driver: it notes when it is told of a new
target. The rest of its memory is a hole, that counts for the balloon policy and takes nothing.
"""

import os
import resource
import select
import time
from collections.abc import Sequence

from balloon_daemon.units import PAGE_SIZE
from benchmarks.guest_file import GuestFile
from benchmarks.ring_guest import RingGuest

QUEUE_SIZE = 16
VM_MEM = "2G"
"""What balloond is told with --vm-mem: a balloon of at most 1 GiB in steps of 64 MiB. It takes
the least of that and the memory table, so guests must be as large."""
VM_MEM_BYTES = 2 << 30

STEP_PAGES = (1 << 30) // 16 // PAGE_SIZE


class TinyGuest(RingGuest):
    """A connected guest of ``VM_MEM``, nearly all of it a hole."""

    def __init__(self, socket: str) -> None:
        super().__init__(socket, GuestFile.in_memory(VM_MEM_BYTES), QUEUE_SIZE)

    def close(self) -> None:
        """Hangs up and frees the memory."""
        super().close()
        self.file.close()

    def read_target_pages(self) -> int:
        """Asks for ``num_pages`` as a driver does."""
        return int.from_bytes(self.frontend.read_config(0, 4), "little")


def wait_told(guests: Sequence[RingGuest], deadline_s: float = 10.0) -> list[float]:
    """Waits until each guest was told once that its config space changed.

    Returns:
        When each was told, by ``time.perf_counter``, in the order in which they were.

    Raises:
        TimeoutError: some were not told.
    """
    poller = select.epoll()
    left = {}
    for guest in guests:
        assert guest.frontend.requests.channel is not None
        fd = guest.frontend.requests.channel.fileno()
        left[fd] = guest
        poller.register(fd, select.EPOLLIN)
    told = []
    deadline = time.monotonic() + deadline_s
    while left:
        for fd, _ in poller.poll(max(0.0, deadline - time.monotonic())):
            told.append(time.perf_counter())
            # The message itself is read later: others' arrival must be noted in time.
            poller.unregister(fd)
            del left[fd]
        if left and time.monotonic() > deadline:
            raise TimeoutError(f"{len(left)} of {len(guests)} guests were not told of a target")
    poller.close()
    for guest in guests:
        guest.frontend.requests.serve_channel()
    return told


def raise_file_limit() -> None:
    """Allows this process and its children as many descriptors as the host does."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def connect(count: int, socket: os.PathLike[str]) -> list[TinyGuest]:
    """So many guests, connected one after the other."""
    return [TinyGuest(os.fspath(socket)) for _ in range(count)]
