"""A guest whose inflate queue is filled before the device hears of it.

A real driver sends one buffer and waits. Here all buffers of a trace wait in the ring, so that the
time from kick to last used entry is the device's own: ring, PFNs, removal, used entry.
"""

import os
import select
import time
from collections.abc import Sequence

from balloon_daemon.fake_guest.frontend import FakeFrontend
from balloon_daemon.fake_guest.ram import FRONTEND_BASE
from balloon_daemon.fake_guest.ring import DriverQueue, ring_bytes
from balloon_daemon.fake_guest.wire import Wire
from balloon_daemon.units import PAGE_SIZE, FrontendAddr, GuestAddr
from balloon_daemon.vhost_user.messages import RegionDescription
from balloon_daemon.virtio.balloon import BalloonFeature
from balloon_daemon.virtio.guest_memory import GuestMemory, MemoryRegion
from benchmarks.guest_file import GuestFile, Pfns

INFLATEQ, DEFLATEQ, REPORTING_VQ = range(3)
"""The queues' numbers where statistics are not negotiated."""
STATSQ = 2
"""The statsq's number where they are: the reporting_vq is one further then."""

FEATURES = BalloonFeature.VERSION_1 | BalloonFeature.MUST_TELL_HOST | BalloonFeature.REPORTING
DEADLINE_S = 60.0
_BUFFER_BYTES = 1024


def area_bytes(queue_size: int) -> int:
    """Guest memory that rings and PFN buffers of a RingGuest take."""
    return (ring_bytes(queue_size) * 4 + queue_size * _BUFFER_BYTES + PAGE_SIZE) & -PAGE_SIZE


class RingGuest:
    """A guest connected to balloond, with its rings at the end of its memory.

    Args:
        socket: balloond's.
        file: the guest's memory, the last ``area_bytes(queue_size)`` of it for the rings.
        queue_size: entries of each ring; a power of two.
        features: what its driver acknowledges.
    """

    def __init__(
        self, socket: str, file: GuestFile, queue_size: int, features: int = FEATURES
    ) -> None:
        self.file = file
        region = RegionDescription(GuestAddr(0), file.size_bytes, FrontendAddr(FRONTEND_BASE), 0)
        memory = GuestMemory(
            [MemoryRegion(GuestAddr(0), FrontendAddr(FRONTEND_BASE), file.size_bytes, file.view())]
        )
        area = file.size_bytes - area_bytes(queue_size)
        count = 4 if features & BalloonFeature.STATS_VQ else 3
        self.buffers_at = area + count * ring_bytes(queue_size)
        self.view = file.view()
        self.queues = [
            DriverQueue(index, queue_size, memory, area + index * ring_bytes(queue_size))
            for index in range(count)
        ]
        self.frontend = FakeFrontend(Wire.connect(socket))
        self.frontend.negotiate()
        rings = [queue.ring for queue in self.queues]
        self.frontend.start(features, [(region, file.fd)], rings)

    def close(self) -> None:
        """Hangs up."""
        self.frontend.close()

    def fill(self, queue: int, buffers: Sequence[Pfns]) -> None:
        """Puts PFN buffers into a queue, without a word to the device."""
        for place, buffer in enumerate(buffers):
            at = self.buffers_at + place * _BUFFER_BYTES
            content = buffer.astype("<u4").tobytes()
            self.view[at : at + len(content)] = content
            self.queues[queue].add([(at, len(content))])

    def fill_report(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Reports (address, length) ranges of free memory, 32 in a chain as Linux does."""
        for first in range(0, len(ranges), 32):
            self.queues[REPORTING_VQ].add([], ranges[first : first + 32])

    def drain(self, queue: int) -> float:
        """Kicks the device and waits until it has used all; returns the seconds between.

        Raises:
            TimeoutError: it does not.
        """
        ring, call = self.queues[queue], self.frontend.call_fd(queue)
        poller = select.poll()
        poller.register(call, select.POLLIN)
        begun = time.perf_counter()
        self.frontend.kick(queue)
        while ring.outstanding:
            if not poller.poll(DEADLINE_S * 1000):
                raise TimeoutError(f"{ring.outstanding} buffers are not used")
            os.eventfd_read(call)
            took = time.perf_counter() - begun
            ring.collect()
        return took
