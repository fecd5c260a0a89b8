"""Does a device's work in the template, over memory of its own, before any device is forked.

CPython writes to code that runs for the first times: it counts the calls, replaces instructions by
others for the types that it has met (PEP 659), and remembers the attributes of types that were
looked up. In a device each such write would copy a page that it shares with the template. What the
template has done before the fork is done in all devices. The code that runs is put together first
(``gathered_code``).
"""

import contextlib
import gc
import os
import socket
import struct

from balloon_daemon.device.gathered_code import code_run_by, gather
from balloon_daemon.device.request import Request, decode_spec, encode_spec
from balloon_daemon.device.spec import DeviceSpec, RegionSpec, VringSpec
from balloon_daemon.device.start import assemble
from balloon_daemon.errors import MemoryFileError
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.linux.memory import create_memfd
from balloon_daemon.tube.connection import DeviceEnd
from balloon_daemon.tube.messages import Command, Target, encode_down
from balloon_daemon.units import PAGE_SIZE, FrontendAddr, GuestAddr
from balloon_daemon.virtio.balloon import STAT_ENTRY, BalloonQueue
from balloon_daemon.virtio.split_queue import DESCRIPTOR, VIRTQ_DESC_F_WRITE

ROUNDS = 12
"""CPython replaces instructions from a function's eighth call on, and some a few calls later."""

_START = tuple(
    f"balloon_daemon.{module}"
    for module in (
        *("device.forker", "device.request", "device.start"),
        *("linux.jail", "linux.libc", "linux.namespaces"),
    )
)
"""Modules whose other functions make a device of a process, which the template must not become."""

_MEMORY_BYTES = 1024 * PAGE_SIZE
_QUEUES = (
    BalloonQueue.INFLATEQ,
    BalloonQueue.DEFLATEQ,
    BalloonQueue.STATSQ,
    BalloonQueue.REPORTING_VQ,
)
_RING = 2
"""Entries of each ring. Each queue gets so many chains in a round, all with the first
descriptor."""
_AVAILABLE, _USED, _BUFFER = 1024, 2048, 3072
"""Where the rings and the buffer are in a queue's page; its descriptors are at the beginning."""

_PFNS = struct.pack("<8I", *range(0, 16, 2))
_BUFFERS = (_PFNS, _PFNS, STAT_ENTRY.pack(5, _MEMORY_BYTES), b"")
"""What the driver gives in each queue: PFNs, statistics, and a report, which is no buffer."""


def warm_up() -> int:
    """Lets a device serve all queues of a small guest, again and again.

    Returns:
        How many chains were answered; 0 where this process may open or map nothing more.
    """
    answered = 0
    with contextlib.suppress(OSError, MemoryFileError), contextlib.ExitStack() as owned:

        def own(fd: int) -> int:
            return owned.enter_context(contextlib.closing(OwnedFd(fd))).fileno()

        memory = own(create_memfd("warm-up", size_bytes=_MEMORY_BYTES))
        kicks = [own(os.eventfd(0, os.EFD_NONBLOCK)) for _ in _QUEUES]
        for number, buffer in enumerate(_BUFFERS):
            at = _page_of(number)
            addr, flags = (at + _BUFFER, 0) if buffer else (0, VIRTQ_DESC_F_WRITE)
            descriptor = DESCRIPTOR.pack(addr, len(buffer) or 64 * PAGE_SIZE, flags, 0)
            os.pwrite(memory, descriptor, at)
            os.pwrite(memory, buffer, at + _BUFFER)
        gather(code_run_by(lambda: _serve(memory, kicks)), _START)
        for _ in range(ROUNDS - 1):
            _serve(memory, kicks)
        answered = sum(_used_index(memory, number) for number in range(len(_QUEUES)))
    gc.collect()  # A device refers to itself. Its mappings and its epoll instance end here.
    return answered


def _page_of(number: int) -> int:
    """Where a queue's page is in the guest's memory: behind all pages that the driver gives."""
    return _MEMORY_BYTES - PAGE_SIZE * (number + 1)


def _used_index(memory: int, number: int) -> int:
    return int.from_bytes(os.pread(memory, 2, _page_of(number) + _USED + 2), "little")


def _serve(memory: int, kicks: list[int]) -> None:
    """One device, from its request to its last report."""
    for number, kick in enumerate(kicks):
        available = struct.pack("<H", _used_index(memory, number) + _RING)
        os.pwrite(memory, available, _page_of(number) + _AVAILABLE + 2)
        os.eventfd_write(kick, 1)
    upper, lower = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with contextlib.closing(upper), contextlib.closing(lower):
        upper.setblocking(False)
        lower.setblocking(False)
        upper.send(encode_down(Target(_MEMORY_BYTES // 2)))
        tube = DeviceEnd(lower)
        tube.wait_for_order()
        loop = assemble(_spec(memory, kicks), tube)
        loop.fds()
        loop.turn()
        upper.send(encode_down(Command.REQUEST_STATS))
        loop.turn()
        upper.send(encode_down(Command.STOP))
        loop.run()


def _spec(memory: int, kicks: list[int]) -> DeviceSpec:
    """The device's spec, sent and received."""
    fds = [memory, *kicks]
    region = RegionSpec(GuestAddr(0), FrontendAddr(0), _MEMORY_BYTES, 0, PAGE_SIZE, fd=0)
    vrings = tuple(
        VringSpec(
            number,
            queue,
            _RING,
            FrontendAddr(_page_of(number)),
            FrontendAddr(_page_of(number) + _AVAILABLE),
            FrontendAddr(_page_of(number) + _USED),
            kick_fd=number + 1,
            call_fd=number + 1,
        )
        for number, queue in enumerate(_QUEUES)
    )
    spec = DeviceSpec("warm-up", (region,), vrings, None, b"", None, must_tell_host=True)
    return decode_spec(Request(len(fds), 0, memoryview(encode_spec(spec)), fds))
