"""A real, jailed device over a guest that consists of memory and rings only.

The test is the driver: it writes rings with ``RawRing``, valid or not. Every page of the guest has
a pattern of its own. Which pages the host holds is read from the memfd, never through a mapping,
as a read through a mapping fills holes.
"""

import contextlib
import gc
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar

from balloon_daemon.device.process import DeviceProcess, Fork, spawn
from balloon_daemon.device.spec import DeviceSpec, RegionSpec, VringSpec
from balloon_daemon.linux.jail import Identity
from balloon_daemon.linux.memory import map_shared
from balloon_daemon.seccomp.filter import CompiledFilter, compile_policy
from balloon_daemon.tube.messages import Command, Progress, Ready, Stopped, Up
from balloon_daemon.units import PAGE_SIZE, FrontendAddr, GuestAddr
from balloon_daemon.virtio.balloon import BalloonQueue
from tests.fakes.forked_here import ForkedHere
from tests.fakes.raw_ring import RawRing, area_offsets
from tests.harness.waiting import wait_until

SHIPPED_POLICY = Path(__file__).parents[2] / "policies" / "balloon_device.policy"
FRONTEND_BASE = 0x7F00_0000_0000
RING_SIZE = 64
RING_PAGES = 4
"""Enough for a ring of 512 entries."""
BUFFER_PAGES = 17
"""64 KiB of PFNs, the limit of a chain, and one page more to exceed the limit."""
ALL_QUEUES = (
    BalloonQueue.INFLATEQ,
    BalloonQueue.DEFLATEQ,
    BalloonQueue.STATSQ,
    BalloonQueue.REPORTING_VQ,
)
DRIVER_PAGES = len(ALL_QUEUES) * (RING_PAGES + BUFFER_PAGES)
"""Pages at the end of the last region that belong to the driver."""
CONFIG_CHANGE = b"config change"
T = TypeVar("T", bound=Up)


@cache
def shipped_filter() -> CompiledFilter:
    """The filter of the policy that balloond ships, compiled once."""
    return compile_policy(SHIPPED_POLICY)


def unprivileged() -> Identity | None:
    """The identity of a device: nobody, where the tests run as root."""
    return Identity(65534, 65534) if os.geteuid() == 0 else None


@contextlib.contextmanager
def ready_to_fork() -> Iterator[None]:
    """Prepares for a fork like the template, and undoes that afterwards for pytest."""
    try:
        gc.collect()
        gc.freeze()
        yield
    finally:
        gc.unfreeze()


class DeviceRig:
    """One guest and its device.

    Args:
        layout: (guest-physical address, pages) of each region; all lie in one memfd.
        ring_size: entries of every ring.
        load_filter: loads a filter in place of the shipped policy's.
    """

    def __init__(
        self,
        layout: Sequence[tuple[int, int]] = ((0, 1024),),
        *,
        ring_size: int = RING_SIZE,
        load_filter: Callable[[], None] | None = None,
    ) -> None:
        self.num_pages = sum(pages for _, pages in layout)
        self.fd = os.memfd_create("rig", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, self.num_pages * PAGE_SIZE)
        os.pwrite(self.fd, b"".join(map(pattern, range(self.num_pages))), 0)
        self._fds = [self.fd]
        self.kicks: dict[BalloonQueue, int] = {}
        self.calls: dict[BalloonQueue, int] = {}
        regions, offset = [], 0
        for number, (addr, pages) in enumerate(layout):
            size = pages * PAGE_SIZE
            frontend = FrontendAddr(FRONTEND_BASE + (number << 32))
            regions.append(RegionSpec(GuestAddr(addr), frontend, size, offset, PAGE_SIZE, self.fd))
            offset += size
        last = regions[-1]
        self._memory = map_shared(self.fd, offset, 0)
        view = memoryview(self._memory)
        first = self.num_pages - DRIVER_PAGES
        self._guest_delta = last.guest_addr - last.mmap_offset_bytes
        self.rings: dict[BalloonQueue, RawRing] = {}
        self._buffers: dict[BalloonQueue, int] = {}
        vrings = []
        for index, queue in enumerate(ALL_QUEUES):
            at = (first + index * (RING_PAGES + BUFFER_PAGES)) * PAGE_SIZE
            area = view[at : at + RING_PAGES * PAGE_SIZE]
            area[:] = bytes(len(area))
            self.rings[queue] = RawRing(area, ring_size)
            self._buffers[queue] = at + len(area)
            self.kicks[queue] = self.eventfd()
            self.calls[queue] = self.eventfd()
            descriptors = at - last.mmap_offset_bytes + last.frontend_addr
            available, used, _ = area_offsets(ring_size)
            vrings.append(
                VringSpec(
                    index,
                    queue,
                    ring_size,
                    FrontendAddr(descriptors),
                    FrontendAddr(descriptors + available),
                    FrontendAddr(descriptors + used),
                    self.kicks[queue],
                    self.calls[queue],
                )
            )
        self._view = view
        self.spec = DeviceSpec(
            name="balloon-rig",
            regions=tuple(regions),
            vrings=tuple(vrings),
            channel_fd=None,
            config_change=CONFIG_CHANGE,
            identity=unprivileged(),
            must_tell_host=True,
        )
        self.here = ForkedHere(load_filter or shipped_filter().load)
        """Forks a device from this process, where a test may change the device's code and
        filter."""
        self.fork: Fork = self.here
        """How devices are forked."""
        self.reports: list[Up] = []
        self.death_record = ""
        """The death record of the latest device that ended."""
        self.device: DeviceProcess | None = None

    def eventfd(self) -> int:
        """A new eventfd, closed with the rig."""
        self._fds.append(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        return self._fds[-1]

    def own(self, fd: int) -> int:
        """Lets the rig own ``fd`` and close it."""
        self._fds.append(fd)
        return fd

    def change_vring(self, queue: BalloonQueue, **changes: object) -> None:
        """Changes a vring of the next device's spec."""
        vrings = [
            vring._replace(**changes) if vring.queue is queue else vring  # type: ignore[arg-type] # checked by replace()
            for vring in self.spec.vrings
        ]
        self.spec = self.spec._replace(vrings=tuple(vrings))

    def start(self) -> DeviceProcess:
        """Forks a device; returns at once."""
        with ready_to_fork():
            self.device = spawn(self.spec, self.fork)
        return self.device

    def start_ready(self) -> DeviceProcess:
        """Forks a device and waits until it is jailed and ready."""
        self.reports.clear()
        device = self.start()
        self.wait_report(Ready)
        return device

    @property
    def running(self) -> DeviceProcess:
        assert self.device is not None
        return self.device

    def wait_end(self) -> int:
        """Waits until the device has ended, and reaps it. Returns its exit code."""
        device = self.running
        codes: list[int] = []

        def reaped() -> bool:
            code = device.reap()
            codes.extend([] if code is None else [code])
            return code is not None

        wait_until(reaped, woken_by=device.pidfd.fileno(), what="the device's end")
        self.read_reports()
        self.death_record = device.read_death_record()
        device.close()
        self.device = None
        return codes[0]

    def kill(self) -> None:
        """Kills the device and reaps it."""
        self.running.kill()
        assert self.wait_end() == -signal.SIGKILL

    def stop(self) -> None:
        """Sends STOP, and checks that the device ends in order: so it had not died before."""
        self.running.tube.send(Command.STOP)
        assert self.wait_end() == 0, self.death_record

    def close(self) -> None:
        """Ends the device and closes all descriptors."""
        try:
            if self.device is not None:
                self.device.kill()
                self.wait_end()
        finally:
            for fd in self._fds:
                os.close(fd)

    # --- reports ------------------------------------------------------------------------------

    def read_reports(self) -> None:
        """Reads the device's reports so far."""
        while reports := self.running.tube.receive():
            self.reports += reports

    def of(self, kind: type[T]) -> list[T]:
        """All reports of a kind so far."""
        return [report for report in self.reports if isinstance(report, kind)]

    def wait_report(self, kind: type[T], count: int = 1) -> T:
        """Waits for the ``count``-th report of a kind."""

        def enough() -> bool:
            self.read_reports()
            return len(self.of(kind)) >= count

        tube = self.running.tube.fileno()
        what = f"report {count} of {kind.__name__}"
        wait_until(enough, woken_by=tube, what=what, seen=lambda: self.reports)
        return self.of(kind)[count - 1]

    def wait_progress(self, condition: Callable[[Progress], bool]) -> Progress:
        """Waits until the device's counters satisfy a condition."""

        def satisfied() -> bool:
            self.read_reports()
            return any(map(condition, self.of(Progress)[-1:]))

        tube = self.running.tube.fileno()
        wait_until(satisfied, woken_by=tube, what="progress", seen=lambda: self.reports)
        return self.of(Progress)[-1]

    def stopped_indices(self) -> dict[int, int]:
        """``used.idx`` of each vring, as the device reported it at its end."""
        return dict(self.of(Stopped)[-1].used_indices)

    # --- the driver's work --------------------------------------------------------------------

    def guest_addr(self, memfd_offset: int) -> int:
        """The guest-physical address of an offset of the last region in the memfd."""
        return memfd_offset + self._guest_delta

    def write_buffer(self, queue: BalloonQueue, content: bytes, at: int = 0) -> tuple[int, int]:
        """Writes content into a queue's buffer. Returns it as a descriptor's (address, length)."""
        start = self._buffers[queue] + at
        self._view[start : start + len(content)] = content
        return self.guest_addr(start), len(content)

    def offer(
        self,
        queue: BalloonQueue,
        readable: Sequence[tuple[int, int]],
        writable: Sequence[tuple[int, int]] = (),
        head: int = 0,
    ) -> None:
        """Makes a chain available, in the descriptors from ``head`` on, and kicks."""
        ring = self.rings[queue]
        ring.offer(ring.chain(range(head, ring.size), readable, writable))
        self.kick(queue)

    def offer_pfns(self, queue: BalloonQueue, pfns: Sequence[int], slot: int = 0) -> None:
        """Makes a buffer of PFNs available; up to 16 slots may be in use at once."""
        content = b"".join(pfn.to_bytes(4, "little") for pfn in pfns)
        self.offer(queue, [self.write_buffer(queue, content, slot * 4096)], head=slot)

    def kick(self, queue: BalloonQueue) -> None:
        os.eventfd_write(self.kicks[queue], 1)

    def wait_used(self, queue: BalloonQueue, count: int = 1) -> list[int]:
        """Waits for used chains, woken by the queue's call. Returns their heads, in order."""
        heads: list[int] = []

        def enough() -> bool:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self.calls[queue])
            heads.extend(head for head, _ in self.rings[queue].collect())
            return len(heads) >= count

        what = f"{count} used chains in {queue.value}"
        wait_until(enough, woken_by=self.calls[queue], what=what)
        return heads

    def inflate(self, pfns: Sequence[int]) -> None:
        """Hands pages over and waits for the used entry."""
        self.offer_pfns(BalloonQueue.INFLATEQ, pfns)
        assert self.wait_used(BalloonQueue.INFLATEQ) == [0]

    # --- the host's memory --------------------------------------------------------------------

    def holes(self) -> set[int]:
        """Pages of the memfd for which the host holds no memory."""
        holes = set(range(self.num_pages))
        at = 0
        with contextlib.suppress(OSError):  # ENXIO: a hole up to the end.
            while True:
                at = os.lseek(self.fd, at, os.SEEK_DATA)
                end = os.lseek(self.fd, at, os.SEEK_HOLE)
                holes -= set(range(at // PAGE_SIZE, -(-end // PAGE_SIZE)))
                at = end
        return holes

    def damaged(self) -> set[int]:
        """Pages of the guest, not the driver's, that lost their pattern."""
        own = self.num_pages - DRIVER_PAGES
        content = os.pread(self.fd, own * PAGE_SIZE, 0)
        return {
            page
            for page in range(own)
            if content[page * PAGE_SIZE : (page + 1) * PAGE_SIZE] != pattern(page)
        }

    def blocks_bytes(self) -> int:
        return os.fstat(self.fd).st_blocks * 512


def pattern(page: int) -> bytes:
    """The content of an untouched page: never zeros, and different for each page."""
    return (page + 1).to_bytes(8, "little") * (PAGE_SIZE // 8)


def fate_of(
    rig: DeviceRig, action: Callable[[], object], load_filter: Callable[[], None] | None = None
) -> int:
    """Runs ``action`` in the jail, as the device, right after its filter is loaded.

    Returns:
        The device's exit code; 7 where it survives the action.
    """
    load = load_filter or shipped_filter().load

    def load_and_act() -> None:
        load()
        action()
        os._exit(7)

    rig.here.load_filter = load_and_act
    rig.start()
    return rig.wait_end()
