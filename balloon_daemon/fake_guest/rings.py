"""The rings of a fake guest's driver, and the guest memory that is set aside for them.

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
    """What a driver asks of its virtual machine monitor."""

    def read_config(self, offset: int, length: int) -> bytes: ...

    def write_config(self, offset: int, content: bytes) -> None: ...

    def kick(self, index: int) -> None: ...


class Rings:
    """The queues that device and driver agreed on.

    Args:
        ram: the guest's memory.
        area: guest-physical address of ``area_bytes`` bytes, page-aligned.
        transport: the machine that the guest runs in.
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
        """A page of the driver's that it does not use: room for a test's own buffers."""
        self._ram = ram
        self._settings = settings
        self._counters = counters

    def set_up(self, acknowledged: int) -> list[Ring]:
        """Makes empty rings for the features that device and driver agreed on."""
        self.queues = {}
        size = self._settings.queue_size
        for index, queue in queue_numbers(acknowledged).items():
            ring = DriverQueue(index, size, self._ram.memory, self.area + index * ring_bytes(size))
            ring.suppress_interrupts(suppress=not self._settings.interrupts)
            self.queues[queue] = ring
        return [ring.ring for ring in self.queues.values()]

    def buffer(self, number: int) -> int:
        """The guest-physical address of a buffer; behind those for PFNs is the statistics'."""
        buffers = self.area + ring_bytes(self._settings.queue_size) * MAX_QUEUES
        return buffers + number * BUFFER_BYTES

    def write(self, addr: int, content: bytes) -> None:
        """Writes into guest memory, for whoever makes chains of his own; see ``scratch``."""
        view = self._ram.memory.view(addr, len(content))
        assert view is not None
        view[:] = content

    def send(
        self, queue: BalloonQueue, readable: Sequence[Buffer], writable: Sequence[Buffer] = ()
    ) -> int:
        """Makes a chain available, and notifies the device if it wants to be; the chain's head."""
        ring = self.queues[queue]
        head = ring.add(readable, writable)
        if ring.wants_kick():
            self._counters.kicks += 1
            self.transport.kick(ring.ring.index)
        else:
            self._counters.kicks_suppressed += 1
        return head
