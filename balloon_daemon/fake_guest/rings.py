"""The rings of a fake guest's driver, and the guest memory reserved for them.

Runs in the fake guest's process.
"""

from collections.abc import Sequence
from typing import Protocol

from balloon_daemon.fake_guest.ram import GuestRam
from balloon_daemon.fake_guest.ring import Buffer, DriverQueue, ring_bytes
from balloon_daemon.fake_guest.settings import (
    BUFFER_BYTES,
    SCRATCH_BYTES,
    DriverCounters,
    DriverSettings,
    area_bytes,
)
from balloon_daemon.fake_guest.styles import Ring
from balloon_daemon.virtio.balloon import MAX_QUEUES, BalloonQueue, queue_numbers


class Transport(Protocol):
    """The services of the VMM that a driver uses."""

    def read_config(self, offset: int, length: int) -> bytes: ...

    def write_config(self, offset: int, content: bytes) -> None: ...

    def kick(self, index: int) -> None: ...


class Rings:
    """The queues in use.

    Args:
        ram: the guest's memory.
        area: guest-physical address of ``area_bytes`` bytes, page-aligned.
        transport: the VMM in which the guest runs.
        settings: how large the rings are, and whether they are polled.
        counters: kicks are counted here.
    """

    def __init__(
        self,
        ram: GuestRam,
        area: int,
        transport: Transport,
        settings: DriverSettings,
        counters: DriverCounters,
    ) -> None:
        self.transport = transport
        self.queues: dict[BalloonQueue, DriverQueue] = {}
        self.area = area
        self.scratch = area + area_bytes(settings) - SCRATCH_BYTES
        """A page reserved for the driver that it does not use, free for a test's own buffers."""
        self._ram = ram
        self._settings = settings
        self._counters = counters

    def set_up(self, acknowledged: int) -> list[Ring]:
        """Makes empty rings for the acknowledged features."""
        self.queues = {}
        size = self._settings.queue_size
        for index, queue in queue_numbers(acknowledged).items():
            ring = DriverQueue(index, size, self._ram.memory, self.area + index * ring_bytes(size))
            ring.suppress_interrupts(suppress=not self._settings.interrupts)
            self.queues[queue] = ring
        return [ring.ring for ring in self.queues.values()]

    def buffer(self, number: int) -> int:
        """The guest-physical address of a buffer; that behind the PFN buffers is for
        statistics."""
        buffers = self.area + ring_bytes(self._settings.queue_size) * MAX_QUEUES
        return buffers + number * BUFFER_BYTES

    def write(self, addr: int, content: bytes) -> None:
        """Writes into guest memory, for tests that make chains of their own; see ``scratch``."""
        view = self._ram.memory.view(addr, len(content))
        assert view is not None
        view[:] = content

    def send(
        self, queue: BalloonQueue, readable: Sequence[Buffer], writable: Sequence[Buffer] = ()
    ) -> int:
        """Makes a chain available, and kicks the device if it wants that. Returns its head."""
        ring = self.queues[queue]
        head = ring.add(readable, writable)
        if ring.wants_kick():
            self._counters.kicks += 1
            self.transport.kick(ring.ring.index)
        else:
            self._counters.kicks_suppressed += 1
        return head
