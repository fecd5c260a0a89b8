"""From a forked child to a device: ``become_device`` runs in the child, and never returns.

Until the filter is loaded, nothing of a guest is read. Guest memory is mapped only after the
controller's first order, which proves that the controller knows this process's pid.
"""

import gc
import os
import socket
from collections.abc import Callable
from typing import NoReturn

from balloon_daemon.device.balloon import BalloonDevice, RunningQueue
from balloon_daemon.device.death_record import describe_error
from balloon_daemon.device.loop import DeviceLoop, Reporter, report_guest_error
from balloon_daemon.device.reclaim import Reclaimer
from balloon_daemon.device.rehearsal import rehearse
from balloon_daemon.device.spec import (
    EXIT_INTERNAL_ERROR,
    STANDARD_ERROR,
    DeviceSpec,
    VringSpec,
)
from balloon_daemon.errors import NO_HEAD, MemoryFileError, Rule
from balloon_daemon.linux import jail, libc
from balloon_daemon.linux.memory import map_shared
from balloon_daemon.linux.seccomp import COUNTED_MEMORY
from balloon_daemon.tube.connection import DeviceEnd
from balloon_daemon.tube.messages import FaultKind
from balloon_daemon.virtio.guest_memory import GuestMemory, MemoryRegion
from balloon_daemon.virtio.split_queue import (
    SplitQueue,
    available_bytes,
    descriptors_bytes,
    used_bytes,
)


def become_device(
    spec: DeviceSpec, tube_fd: int, stderr_fd: int, parent: int, load_filter: Callable[[], None]
) -> NoReturn:
    """Turns a forked child, whose signals are reset, into a device; the process ends in here.

    Args:
        spec: the device's spec, with this process's descriptor numbers.
        tube_fd: the device's end of the tube.
        stderr_fd: becomes the standard error.
        parent: the controller's process id.
        load_filter: loads the seccomp filter into the calling process.
    """
    try:
        os.dup2(stderr_fd, STANDARD_ERROR)
        gc.freeze()
        jail.limit_first()
        # Close inherited files first. The files that are opened below then find room even where
        # the host's file table is full.
        jail.close_fds_except([STANDARD_ERROR, tube_fd, *spec.fds()])
        sock = socket.socket(fileno=tube_fd)
        sock.setblocking(False)
        tube = DeviceEnd(sock)
        if not tube.wait_for_order():
            os._exit(0)
        loop = assemble(spec, tube)
        keep = [STANDARD_ERROR, *loop.fds()]
        jail.close_fds_except(keep)
        jail.enter(spec.name, parent, spec.identity)
        libc.keep_heap_off_brk()
        COUNTED_MEMORY.load()
        load_filter()
        loop.run()
        if spec.rehearse:
            rehearse(lambda step: jail.write_error(f"{step}\n"))
        os._exit(0)
    except MemoryFileError as err:
        # The VMM or the host is at fault, not this program, so a traceback would add nothing.
        jail.write_error(f"{spec.name}: {err}")
    except BaseException as err:
        jail.write_error(f"{spec.name}: {describe_error(err)}")
    finally:
        os._exit(EXIT_INTERNAL_ERROR)


def assemble(spec: DeviceSpec, tube: DeviceEnd) -> DeviceLoop:
    """Maps guest memory and builds the device; of the guest it reads only ``used.idx``.

    Args:
        spec: the device's spec, with this process's descriptor numbers.
        tube: the device's end.

    Raises:
        MemoryFileError: guest memory cannot be mapped.
    """
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
        frees_reported=spec.frees_reported,
    )
    if spec.channel_fd is not None:
        os.set_blocking(spec.channel_fd, False)
    return DeviceLoop(device, tube, reporter, spec.channel_fd, spec.config_change, spec.earned)


def _running_queue(vring: VringSpec, memory: GuestMemory) -> RunningQueue | None:
    """Finds the ring in guest memory; None where an area is not wholly inside one region."""
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
