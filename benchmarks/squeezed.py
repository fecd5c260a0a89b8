"""Guests at the maximum of their balloons on a host that stays low on memory."""

import os
import select
import threading
import time
from collections.abc import Sequence

from balloon_daemon.units import GIB, MIB, PAGE_SIZE, GuestAddr
from balloon_daemon.virtio.balloon import STAT_ENTRY, BalloonFeature, StatTag
from benchmarks.guest_file import GuestFile
from benchmarks.ring_guest import FEATURES, STATSQ, RingGuest
from benchmarks.tiny_guest import QUEUE_SIZE, VM_MEM_BYTES

MOST_PAGES = GIB // PAGE_SIZE
"""The most that is asked of such a VM."""
REACHED_WITHIN_S = 60.0

_STATS = b"".join(
    STAT_ENTRY.pack(tag, size)
    for tag, size in (
        (StatTag.SWAP_IN, 0),
        (StatTag.SWAP_OUT, 0),
        (StatTag.MAJFLT, 100),
        (StatTag.MINFLT, 1000),
        (StatTag.MEMFREE, 512 * MIB),
        (StatTag.MEMTOT, VM_MEM_BYTES),
        (StatTag.AVAIL, 512 * MIB),
        (StatTag.CACHES, 64 * MIB),
    )
)


class SqueezedGuest(RingGuest):
    """A guest of 2 GiB, nearly all of it a hole, whose driver has statistics to tell.

    Its balloon is only a number: it writes the target to ``actual`` and hands no page over.
    """

    def __init__(self, socket: str) -> None:
        file = GuestFile.in_memory(VM_MEM_BYTES)
        super().__init__(socket, file, QUEUE_SIZE, FEATURES | BalloonFeature.STATS_VQ)
        self.send_stats()

    def send_stats(self) -> None:
        """Hands a buffer of statistics to the device; called each time that it has used one."""
        at = GuestAddr(self.buffers_at)
        self.view[at : at + len(_STATS)] = _STATS
        self.queues[STATSQ].collect()
        self.queues[STATSQ].add([(at, len(_STATS))])
        self.frontend.kick(STATSQ)

    def has_reached_most(self) -> bool:
        """Reads the target, writes it to ``actual``; True: it is the maximum."""
        self.frontend.requests.serve_channel()
        target = self.frontend.read_config(0, 4)
        self.frontend.write_config(4, target)
        return int.from_bytes(target, "little") == MOST_PAGES

    def close(self) -> None:
        """Hangs up and frees the memory."""
        super().close()
        self.file.close()


class SqueezedGuests:
    """Many of them; a thread refills their statistics queues."""

    def __init__(self, socket: str, count: int) -> None:
        self._guests = [SqueezedGuest(socket) for _ in range(count)]
        self._stop = os.eventfd(0)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def wait_most(self) -> None:
        """Waits until all are asked for all that they may be, and have written ``actual``.

        Raises:
            TimeoutError: some are not.
        """
        deadline = time.monotonic() + REACHED_WITHIN_S
        left: Sequence[SqueezedGuest] = self._guests
        while left := [guest for guest in left if not guest.has_reached_most()]:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(left)} balloons did not reach their maximum")
            time.sleep(0.5)

    def close(self) -> None:
        """Ends all of them."""
        os.eventfd_write(self._stop, 1)
        self._thread.join()
        os.close(self._stop)
        for guest in self._guests:
            guest.close()

    def _serve(self) -> None:
        by_call = {guest.frontend.call_fd(STATSQ): guest for guest in self._guests}
        poller = select.epoll()
        for fd in (self._stop, *by_call):
            poller.register(fd, select.EPOLLIN)
        while True:
            for fd, _ in poller.poll():
                if fd == self._stop:
                    poller.close()
                    return
                os.eventfd_read(fd)
                by_call[fd].send_stats()
