"""Free page reporting: what a guest gives back without being asked, how soon, at what cost.

The device's part with a fake guest that reports blocks of 2 MiB, 32 in a chain; the whole with a
real guest that deletes a file.
"""

import time
from collections.abc import Iterator

import numpy as np

from balloon_daemon.units import GIB, MIB
from benchmarks import c_programs
from benchmarks.figures import Figure, missing, of_samples, ratios
from benchmarks.guest_file import GuestFile
from benchmarks.processes import Balloond, cpu_s
from benchmarks.real_vm import RealVm, wait
from benchmarks.ring_guest import REPORTING_VQ, RingGuest, area_bytes
from tests.vm.cache import ImagesError
from tests.vm.images import ready_images

RUNS = 5
QUEUE_SIZE = 1024
BLOCK_BYTES = 2 * MIB
FILE_MIB = 512
WATCH_S = 6.0
"""The guest's kernel waits 2 s after memory became free, and then reports all of it."""


def figures() -> Iterator[Figure]:
    """Measures; yields as it goes."""
    try:
        yield from _fake_guest(c_programs.floor())
    except c_programs.CompilerError as err:
        yield missing("page reporting, fake guest: balloond", "GiB/s", str(err))
    try:
        yield from _real_guest()
    except ImagesError as err:
        yield missing("page reporting, real guest: file's memory returned", "%", str(err))


def _fake_guest(floor: c_programs.CProgram) -> Iterator[Figure]:
    file = GuestFile.in_memory(GIB + area_bytes(QUEUE_SIZE))
    blocks = [(addr, BLOCK_BYTES) for addr in range(0, GIB, BLOCK_BYTES)]
    ours, theirs, cpu = [], [], []
    with Balloond() as daemon:
        guest = RingGuest(str(daemon.socket), file, QUEUE_SIZE)
        (device,) = daemon.wait_devices(1)
        for _ in range(RUNS):
            file.touch()
            guest.fill_report(blocks)
            before = cpu_s(device)
            ours.append(guest.drain(REPORTING_VQ))
            cpu.append(cpu_s(device) - before)
            file.touch()
            theirs.append(floor.run(file, np.array(blocks, np.uint64))[0])
        guest.close()
    file.close()
    name = "page reporting, fake guest"
    yield of_samples(f"{name}: balloond", "GiB/s", [1 / s for s in ours])
    yield of_samples(f"{name}: CPU", "s/GiB", cpu)
    yield of_samples(f"{name}: speed to the floor in C", "×", ratios(theirs, ours))


def _real_guest() -> Iterator[Figure]:
    shares, soon, cpu = [], [], []
    vm = RealVm(ready_images(), own_device=False, page_reporting=True)
    assert vm.daemon is not None
    try:
        (device,) = vm.daemon.wait_devices(1)
        for _ in range(RUNS):
            vm.free_memory(FILE_MIB)
            blocks, before, begun = vm.blocks_bytes(), cpu_s(device), time.perf_counter()
            half = wait(
                lambda blocks=blocks: blocks - vm.blocks_bytes() > FILE_MIB * MIB // 2,  # type: ignore[misc]
                "half of the file's memory is reported",
            )
            time.sleep(max(0.0, WATCH_S - (time.perf_counter() - begun)))
            returned = blocks - vm.blocks_bytes()
            shares.append(returned / (FILE_MIB * MIB) * 100)
            soon.append(half - begun)
            cpu.append((cpu_s(device) - before) / (returned / GIB))
    finally:
        vm.close()
    name = "page reporting, real guest"
    note = "of the file; more than all of it is memory that was free before"
    yield of_samples(f"{name}: memory returned in {WATCH_S:g} s", "%", shares, note=note)
    yield of_samples(f"{name}: to the first half after deletion", "s", soon)
    yield of_samples(f"{name}: CPU of the device", "s/GiB", cpu)
