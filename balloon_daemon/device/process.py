"""Starting a device: ``spawn`` runs in the controller, ``become_device`` in the forked child.

The child never returns. Nothing of a guest is read before the filter is loaded, and nothing is
even mapped before the controller knows whom it has forked.
"""

import contextlib
import errno
import gc
import os
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NoReturn

from balloon_daemon.device.balloon import BalloonDevice, RunningQueue
from balloon_daemon.device.last_words import describe_error
from balloon_daemon.device.loop import DeviceLoop, Reporter, report_guest_error
from balloon_daemon.device.reclaim import Reclaimer
from balloon_daemon.device.rehearsal import rehearse
from balloon_daemon.errors import NO_HEAD, MemoryFileError, Rule
from balloon_daemon.linux import cpython, jail, libc
from balloon_daemon.linux.events import OwnedFd
from balloon_daemon.linux.memory import map_shared
from balloon_daemon.linux.seccomp import NO_POOLED_HUGE_PAGES
from balloon_daemon.tube.connection import ControllerEnd, DeviceEnd, open_tube
from balloon_daemon.tube.messages import Command, FaultKind
from balloon_daemon.units import FrontendAddr, GuestAddr
from balloon_daemon.virtio.balloon import BalloonQueue
from balloon_daemon.virtio.guest_memory import GuestMemory, MemoryRegion
from balloon_daemon.virtio.split_queue import (
    SplitQueue,
    available_bytes,
    descriptors_bytes,
    used_bytes,
)

EXIT_INTERNAL_ERROR = 70
"""sysexits.h, EX_SOFTWARE: our own bug, or memory that it was not given; its last words, on
standard error, say which."""

STANDARD_ERROR = 2

MAX_LAST_WORDS_BYTES = 64 * 1024
"""All that a pipe holds (pipe(7))."""
MAX_LAST_WORDS = 1500
"""Characters: a traceback's end fits."""


@dataclass(frozen=True, slots=True)
class RegionSpec:
    """A memory region.

    Attributes:
        fd: its file, the caller's; None for one that is not to be mapped. Its pages are known and
            never removed, and nothing can be read there.
        freed: whether pages that the guest gives up here can be removed.
    """

    guest_addr: GuestAddr
    frontend_addr: FrontendAddr
    size_bytes: int
    mmap_offset_bytes: int
    page_bytes: int
    fd: int | None
    freed: bool = True


@dataclass(frozen=True, slots=True)
class VringSpec:
    """A vring to serve; the fds stay the caller's."""

    index: int
    queue: BalloonQueue
    size: int
    descriptors: FrontendAddr
    available: FrontendAddr
    used: FrontendAddr
    kick_fd: int
    call_fd: int | None


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """All that a device needs, known before it is forked.

    Attributes:
        name: for ``ps`` and ``top``; the kernel keeps 15 bytes.
        channel_fd: the back-end channel; None: no target can be signalled.
        config_change: the message for it.
        identity: whom to become where the controller is root.
        load_filter: loads the seccomp filter into the calling process.
        must_tell_host: the driver acknowledged VIRTIO_BALLOON_F_MUST_TELL_HOST.
        earned: how much of its allowances the guest has at the beginning, from 0 to 1.
        rehearse: before it ends it does what only a long life could need, naming each step of
            that on its standard error.
        pfns_name_pages: False where the guest has pages beyond what a page frame number of 32 bits
            can name: then no number can be trusted, and no page of the balloon is removed.
    """

    name: str
    regions: tuple[RegionSpec, ...]
    vrings: tuple[VringSpec, ...]
    channel_fd: int | None
    config_change: bytes
    identity: jail.Identity | None
    load_filter: Callable[[], None]
    must_tell_host: bool
    earned: float = 1.0
    rehearse: bool = False
    pfns_name_pages: bool = True

    def fds(self) -> Iterator[int]:
        """Every descriptor in it, in a fixed order."""
        yield from (region.fd for region in self.regions if region.fd is not None)
        for vring in self.vrings:
            yield vring.kick_fd
            if vring.call_fd is not None:
                yield vring.call_fd
        if self.channel_fd is not None:
            yield self.channel_fd


class NotYetError(OSError):
    """What forks devices is just being started: to be asked again in a moment."""

    def __init__(self) -> None:
        super().__init__(errno.EAGAIN, "the process that forks devices is being started")


Fork = Callable[[DeviceSpec, int, int, int], int]
"""Forks a device of a spec, with the descriptors of its end of the tube and of its standard error
and its parent's process id; returns its process id, or raises OSError, or NotYetError where that
is no failure."""


class DeviceProcess:
    """A forked device, as the controller sees it.

    Args:
        pid: its process id.
        tube: the controller's end.
        last_words: read end of the pipe that is its standard error. It hangs up when the device
            is gone, however it went, which is how another controller can tell.
    """

    def __init__(self, pid: int, tube: ControllerEnd, last_words: OwnedFd) -> None:
        self.pid = pid
        self.tube = tube
        self.last_words = last_words
        self.pidfd = OwnedFd(os.pidfd_open(pid))
        """Readable once the device has ended."""

    def kill(self) -> None:
        """Ends it at once; no harm where it has ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd.fileno(), signal.SIGKILL)

    def reap(self) -> int | None:
        """Collects its exit code, negative for a signal; None while it runs."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None

    def read_last_words(self) -> str:
        """The end of what it wrote to standard error, in one line of printable text.

        A guest that took the device over may have written it.
        """
        try:
            words = os.read(self.last_words.fileno(), MAX_LAST_WORDS_BYTES)
        except OSError:
            return ""
        lines = words.decode("ascii", "backslashreplace").split("\n")
        text = " | ".join("".join(c for c in line if c.isprintable()) for line in lines if line)
        return text[-MAX_LAST_WORDS:]

    def close(self) -> None:
        """Closes what the controller holds of it."""
        self.last_words.close()
        self.tube.close()
        self.pidfd.close()


def fork_here(spec: DeviceSpec, tube_fd: int, words_fd: int, parent: int) -> int:
    """Forks a device from this very process, with all that it has in memory."""

    def child() -> NoReturn:
        jail.reset_signals()
        cpython.run_without_new_arenas(lambda: become_device(spec, tube_fd, words_fd, parent))

    return fork(child)


def spawn(spec: DeviceSpec, *, look: bool = False, fork: Fork = fork_here) -> DeviceProcess:
    """Starts a device.

    Args:
        look: its first order is to stop: it serves nothing, and says where its rings are.
        fork: how it is forked.

    Raises:
        OSError: no process or no descriptor to be had.
    """
    with contextlib.ExitStack() as undo:
        upper, lower = open_tube()
        undo.callback(upper.close)
        with contextlib.closing(lower):
            words_out, words_in = map(OwnedFd, os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK))
            undo.callback(words_out.close)
            with contextlib.closing(words_in):
                pid = fork(spec, lower.fileno(), words_in.fileno(), os.getpid())
        undo.callback(_end_child, pid)
        device = DeviceProcess(pid, upper, words_out)
        undo.pop_all()
    # Before any order it does nothing; a new device has no statistics to be asked for, so this
    # one only says: go.
    upper.send(Command.STOP if look else Command.REQUEST_STATS)
    return device


def fork(child: Callable[[], NoReturn]) -> int:
    """Forks a process that runs ``child``, with a copy of our table of descriptors.

    Returns:
        Its process id.

    Raises:
        OSError: no process to be had.
    """
    # A signal that arrived between fork and reset would run the controller's handler in the child.
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            child()
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _end_child(pid: int) -> None:
    """Ends and reaps a child that nobody can watch: two devices must never serve one guest."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def prepare_fork() -> None:
    """Runs once in the controller before its first fork, when all is imported.

    Everything that exists now is taken out of the garbage collector's sight: a collection in a
    child would otherwise write to, and so copy, every page of the heap that both share.
    """
    gc.collect()
    gc.freeze()


def become_device(spec: DeviceSpec, tube_fd: int, words_fd: int, parent: int) -> NoReturn:
    """Turns a forked child, whose signals are reset, into a device; ends the process with it."""
    try:
        os.dup2(words_fd, STANDARD_ERROR)
        gc.freeze()
        jail.limit_first()
        # First of all, so that there is room for what is opened next where the host has none.
        jail.close_fds_except([STANDARD_ERROR, tube_fd, *spec.fds()])
        sock = socket.socket(fileno=tube_fd)
        sock.setblocking(False)
        tube = DeviceEnd(sock)
        if not tube.wait_for_order():
            os._exit(0)
        loop = _assemble(spec, tube)
        keep = [STANDARD_ERROR, *loop.fds()]
        jail.close_fds_except(keep)
        jail.enter(spec.name, parent, spec.identity)
        libc.keep_heap_off_brk()
        NO_POOLED_HUGE_PAGES.load()
        spec.load_filter()
        loop.run()
        if spec.rehearse:
            rehearse(lambda step: jail.write_last_words(f"{step}\n"))
        os._exit(0)
    except MemoryFileError as err:
        # The VMM's doing, or the host's: no traceback of ours would say more.
        jail.write_last_words(f"{spec.name}: {err}")
    except BaseException as err:
        jail.write_last_words(f"{spec.name}: {describe_error(err)}")
    finally:
        os._exit(EXIT_INTERNAL_ERROR)


def _assemble(spec: DeviceSpec, tube: DeviceEnd) -> DeviceLoop:
    """Maps the guest and wires everything up; reads nothing of it but ``used.idx``."""
    regions = sorted(spec.regions, key=lambda region: region.guest_addr)
    maps = [
        None if r.fd is None else map_shared(r.fd, r.size_bytes, r.mmap_offset_bytes)
        for r in regions
    ]
    memory = GuestMemory(
        [
            MemoryRegion(
                region.guest_addr,
                region.frontend_addr,
                region.size_bytes,
                None if mapped is None else memoryview(mapped),
                region.page_bytes,
            )
            for region, mapped in zip(regions, maps, strict=True)
        ]
    )
    reporter = Reporter(tube)
    queues = []
    for vring in spec.vrings:
        running = _running_queue(vring, memory)
        if running is None:
            reporter.fault(FaultKind.RING, vring.index, Rule.RING, NO_HEAD, vring.descriptors)
        else:
            queues.append(running)
    freed = [
        mapped if region.freed else None for region, mapped in zip(regions, maps, strict=True)
    ]
    reclaimer = Reclaimer(
        memory,
        freed,
        lambda errno, addr: reporter.fault(FaultKind.HOST, 0, errno, NO_HEAD, addr),
        must_tell_host=spec.must_tell_host,
        pfns_name_pages=spec.pfns_name_pages,
    )
    device = BalloonDevice(
        memory,
        reclaimer,
        queues,
        lambda running, err: report_guest_error(reporter, running, err),
    )
    if spec.channel_fd is not None:
        os.set_blocking(spec.channel_fd, False)
    return DeviceLoop(device, tube, reporter, spec.channel_fd, spec.config_change, spec.earned)


def _running_queue(vring: VringSpec, memory: GuestMemory) -> RunningQueue | None:
    """The ring in guest memory; None where its addresses are not wholly inside one region."""
    areas = (
        memory.view_of_frontend(vring.descriptors, descriptors_bytes(vring.size)),
        memory.view_of_frontend(vring.available, available_bytes(vring.size)),
        memory.view_of_frontend(vring.used, used_bytes(vring.size)),
    )
    descriptors, available, used = areas
    if descriptors is None or available is None or used is None:
        return None
    os.set_blocking(vring.kick_fd, False)
    if vring.call_fd is not None:
        os.set_blocking(vring.call_fd, False)
    ring = SplitQueue(vring.queue.value, vring.size, descriptors, available, used)
    return RunningQueue(
        vring.index, vring.queue, ring, vring.kick_fd, vring.call_fd, owes_call=True
    )
