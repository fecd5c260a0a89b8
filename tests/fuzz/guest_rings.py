"""Target: rings and buffers that an adversary rewrites between any two reads of the device.

Real memory behind real mappings, and MADV_REMOVE in earnest. Everything that the device reads of
the guest passes a watched reader: there the adversary strikes first, and what is then read is
written down. The oracle (``rings_oracle.py``) works from that record alone, in the plainest
way: a page that it does not find handed over there must keep its contents.
"""

import mmap
import os
from dataclasses import dataclass
from typing import Any

from balloon_daemon.device.balloon import MAX_CHAINS_A_TURN, BalloonDevice, RunningQueue
from balloon_daemon.device.reclaim import Reclaimer
from balloon_daemon.errors import GuestError, RingError
from balloon_daemon.units import FrontendAddr, GuestAddr
from balloon_daemon.virtio import split_queue
from balloon_daemon.virtio.balloon import MAX_STATS, BalloonQueue
from balloon_daemon.virtio.guest_memory import GuestMemory, MemoryRegion
from balloon_daemon.virtio.split_queue import SplitQueue
from tests.fakes.raw_ring import RawRing
from tests.fuzz.rings_oracle import Oracle, Place
from tests.harness.enemies.choices import Choices
from tests.harness.invariants import require

PAGE = 4096
LOW_PAGES, HIGH_PAGES = 48, 16
HIGH_PAGE = 0x10_0000
"""The second region's first PFN: 4 GiB."""

RING_PAGES = 4
"""Page n of the low region holds queue n's ring."""

BUFFER_PAGES = 8
"""Pages up to here are the adversary's to write; from here on every page has its pattern."""

MAX_TURNS = 24
QUEUES = [
    BalloonQueue.INFLATEQ,
    BalloonQueue.DEFLATEQ,
    BalloonQueue.REPORTING_VQ,
    BalloonQueue.STATSQ,
]
_EVENT = os.eventfd(0, os.EFD_NONBLOCK)
_PATTERN = bytes(
    (page * 37 + word * 11 + 1) & 0xFF or 1
    for page in range(LOW_PAGES + HIGH_PAGES)
    for word in range(16)
    for _ in range(PAGE // 16)
)


class _Ram:
    """The guest's memory: one file, two regions; made once and refilled for each run."""

    def __init__(self) -> None:
        fd = os.memfd_create("fuzz-rings")
        os.ftruncate(fd, len(_PATTERN))
        self.whole = mmap.mmap(fd, len(_PATTERN))
        self.maps = [
            mmap.mmap(fd, LOW_PAGES * PAGE),
            mmap.mmap(fd, HIGH_PAGES * PAGE, offset=LOW_PAGES * PAGE),
        ]
        os.close(fd)

    def regions(self, host_page_bytes: int) -> list[MemoryRegion]:
        """Region 0 in 4 KiB pages; region 1 as the host would have it on huge pages."""
        low, high = memoryview(self.maps[0]), memoryview(self.maps[1])
        return [
            MemoryRegion(GuestAddr(0), FrontendAddr(1 << 40), len(low), low),
            MemoryRegion(
                GuestAddr(HIGH_PAGE * PAGE),
                FrontendAddr(1 << 41),
                len(high),
                high,
                host_page_bytes,
            ),
        ]


_RAM = _Ram()


def run(data: bytes) -> None:
    """One guest's life under attack."""
    choices = Choices(data)
    _RAM.whole[:] = _PATTERN
    guest = HostileGuest(choices)
    for _ in range(MAX_TURNS):
        if not choices:
            break
        guest.turn()
    guest.check_memory()


@dataclass
class _Descriptors:
    """Stands in for the ring's reader of descriptors: each read is struck first, then recorded."""

    guest: "HostileGuest"

    def __call__(self, buffer: memoryview, offset: int) -> tuple[int, ...]:
        self.guest.strike()
        fields = split_queue.DESCRIPTOR.unpack_from(buffer, offset)
        self.guest.oracle.read_descriptor(offset // split_queue.DESCRIPTOR.size, fields)
        return fields


@dataclass
class _Available:
    """Stands in for an available ring."""

    guest: "HostileGuest"
    view: memoryview

    def __getitem__(self, index: int) -> int:
        self.guest.strike()
        value = int(self.view[index])
        if index >= 2:
            self.guest.oracle.read_entry(value)
        return value


@dataclass
class _Buffer:
    """Stands in for a view of guest memory that is copied out."""

    guest: "HostileGuest"
    view: memoryview

    def __bytes__(self) -> bytes:
        self.guest.strike()
        content = bytes(self.view)
        self.guest.oracle.read_buffer(content)
        return content


class _WatchedMemory(GuestMemory):
    guest: "HostileGuest"

    def view(self, addr: int, length: int) -> Any:
        found = super().view(addr, length)
        return None if found is None else _Buffer(self.guest, found)


@dataclass
class _WatchedMap:
    """Stands in for a mapping: removes in earnest, and tells the oracle first."""

    guest: "HostileGuest"
    index: int

    def madvise(self, advice: int, offset: int, length: int) -> None:
        require(advice == mmap.MADV_REMOVE, "another advice", advice)
        self.guest.oracle.removed(self.index, offset, length)
        if self.guest.choices.chance(4):
            raise OSError(22, "the kernel refuses")
        _RAM.maps[self.index].madvise(advice, offset, length)


class HostileGuest:
    """A guest whose every byte may change at any moment, and the device that serves it."""

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        self.host_page_bytes = choices.pick((PAGE, 4 * PAGE))
        self._must_tell_host = choices.chance(170)
        self.size = 1 << choices.below(6)
        page = memoryview(_RAM.maps[0])
        self.rings = [RawRing(page[n * PAGE : (n + 1) * PAGE], self.size) for n in range(4)]
        for n, ring in enumerate(self.rings):
            page[n * PAGE : (n + 1) * PAGE] = bytes(PAGE)
            ring.start_at(choices.pick((0, 0, 0, 65530)))
        self._dead: set[int] = set()
        self._removable: set[Place] = set()
        self._start_device()

    def _start_device(self) -> None:
        """A new device on the same rings, as after a crash."""
        regions = _RAM.regions(self.host_page_bytes)
        layout = [(r.guest_addr // PAGE, r.size_bytes // PAGE) for r in regions]
        parts = {1: self.host_page_bytes // PAGE}
        self.oracle = Oracle(layout, parts, self._removable, remembers=self._must_tell_host)
        memory = _WatchedMemory(regions)
        memory.guest = self
        maps: Any = [_WatchedMap(self, index) for index in range(2)]
        reader: Any = _Descriptors(self)
        split_queue._unpack_descriptor = reader
        queues = []
        for n, kind in enumerate(QUEUES):
            ring = SplitQueue(kind.value, self.size, *self.rings[n].areas)
            available: Any = _Available(self, self.rings[n].available.cast("H"))
            ring._available = available
            queues.append(RunningQueue(n, kind, ring, _EVENT, _EVENT))
        self.device = BalloonDevice(
            memory,
            Reclaimer(memory, maps, lambda errno, addr: None, must_tell_host=self._must_tell_host),
            queues,
            self._fault,
            clock=lambda: 0.0,
        )

    def _fault(self, running: RunningQueue, err: GuestError) -> None:
        require(str(err) and 0 <= err.head < self.size, "a fault without a chain", err)
        self.oracle.faulted()

    def turn(self) -> None:
        """Writes something, then lets one queue be served; sometimes the device dies first."""
        action = self.choices.below(32)
        if action == 0:
            self.check_memory()
            self._start_device()
            self._dead.clear()
        elif action == 1:
            self.device.request_stats()
        else:
            self._offer()
        n = self.choices.below(5) % 4
        if n in self._dead:
            return
        running = self.device.queues[n]
        self.oracle.begin(running.queue)
        try:
            self.device.process(running)
        except RingError:
            self._dead.add(n)
        require(self.oracle.chains <= MAX_CHAINS_A_TURN, "a turn without end", self.oracle.chains)
        self.oracle.end()
        stats = self.device.take_stats() or ()
        require(len(stats) <= MAX_STATS, "more statistics than fit", len(stats))

    # --- what the adversary writes ------------------------------------------------------------

    def _offer(self) -> None:
        """Mostly rightful chains of PFNs, ranges or bytes; then perhaps anything at all."""
        choices = self.choices
        for _ in range(choices.below(4)):
            n = choices.below(4)
            ring = self.rings[n]
            at = BUFFER_PAGES // 2 * PAGE + choices.below(BUFFER_PAGES // 2) * PAGE
            parts = []
            for part in range(1 + choices.below(3)):
                addr = at + part * 512
                if QUEUES[n] is BalloonQueue.REPORTING_VQ:
                    parts.append((self._address(), choices.below(12) * PAGE // 2))
                    continue
                content = b"".join(
                    self._pfn().to_bytes(4, "little") for _ in range(choices.below(24))
                )
                _RAM.maps[0][addr : addr + len(content)] = content
                parts.append((addr, len(content)))
            indices = [choices.below(self.size) for _ in parts]
            writable = QUEUES[n] is BalloonQueue.REPORTING_VQ
            head = ring.chain(indices, *(((), parts) if writable else (parts,)))
            ring.offer(head)
        if choices.chance(64):
            self._scribble()

    def _pfn(self) -> int:
        number = self.choices.number(1)
        if number < 128:
            return BUFFER_PAGES + number % (LOW_PAGES - BUFFER_PAGES)
        if number < 240:
            return HIGH_PAGE + number % HIGH_PAGES
        return self.choices.wide(4)

    def _address(self) -> int:
        if self.choices.chance(12):
            return self.choices.wide(8)
        pages = self.choices.below(LOW_PAGES + HIGH_PAGES)
        page = pages if pages < LOW_PAGES else HIGH_PAGE + pages - LOW_PAGES
        return page * PAGE + (self.choices.below(PAGE) if self.choices.chance(24) else 0)

    def strike(self) -> None:
        """Between two reads of the device: perhaps writes somewhere that matters."""
        if self.choices.chance(40):
            self._scribble()

    def _scribble(self) -> None:
        choices = self.choices
        ring = self.rings[choices.below(4)]
        match choices.below(8):
            case 0:
                ring.avail_idx = ring.avail_idx + choices.below(4)
            case 1:
                ring.avail_idx = choices.number(2)
            case 2:
                ring.used_idx = choices.number(2)
            case 3:
                ring.offer(choices.number(2))
            case 4:
                index = choices.below(self.size)
                ring.describe(
                    index,
                    self._address(),
                    choices.wide(4) if choices.chance(64) else 4 * choices.below(64),
                    choices.below(8),
                    choices.below(self.size + 1),
                )
            case 5:
                at = BUFFER_PAGES // 2 * PAGE + choices.below(BUFFER_PAGES // 2) * PAGE
                at += 4 * choices.below(64)
                _RAM.maps[0][at : at + 4] = self._pfn().to_bytes(4, "little")
            case 6:
                at = choices.below(BUFFER_PAGES * PAGE - 16)
                content = choices.take(choices.below(16))
                _RAM.maps[0][at : at + len(content)] = content
            case _:
                ring.set_flags(choices.below(2))

    # --- what must hold afterwards ------------------------------------------------------------

    def check_memory(self) -> None:
        """Every page that the record does not hand over still has its pattern."""
        for page in range(BUFFER_PAGES, LOW_PAGES + HIGH_PAGES):
            kept = _RAM.whole[page * PAGE : (page + 1) * PAGE]
            place = (0, page) if page < LOW_PAGES else (1, page - LOW_PAGES)
            if kept != _PATTERN[page * PAGE : (page + 1) * PAGE]:
                require(place in self._removable, "lost a page", place)
                require(not any(kept), "wrote into the guest's memory", place)
