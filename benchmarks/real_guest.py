"""A real guest: 1 GiB out of 2 GiB, balloond against QEMU's own device, in turn.

Same QEMU, same kernel, same memory backend; a guest booted anew for each run, which has just
deleted a file of 1600 MiB. Without page reporting on either side: it would begin two seconds
after the file is gone and free the rest of what is to be measured.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.figures import Figure, at_most, missing, of_samples, ratios
from benchmarks.real_vm import TARGET_BYTES, RealVm, wait
from tests.vm.images import Images, ready_images

RUNS = 5
FILE_MIB = 1600
TIME_GOAL, CPU_GOAL = at_most(0.75), at_most(0.8)
ENOUGH = 0.99
"""The share of a target that counts as freed."""


@dataclass(frozen=True, slots=True)
class Run:
    """One guest's figures, in seconds; CPU is the host's."""

    actual_s: float
    freed_s: float
    cpu_s: float
    back_s: float
    back_cpu_s: float


def figures() -> Iterator[Figure]:
    """Measures; yields as it goes."""
    name = "real guest, 1 GiB of 2"
    ours, theirs, failed = [], [], ""
    try:
        images = ready_images()
        for _ in range(RUNS):
            pair = [_run(images, own_device=own_device) for own_device in (False, True)]
            ours.append(pair[0])
            theirs.append(pair[1])
    except Exception as err:
        # A guest that stood still for a minute on a crowded machine: the pairs before it count.
        failed = f"{type(err).__name__}: {err}"
    if not ours:
        yield missing(f"{name}: seconds to 99 % freed, to QEMU's device", "×", failed, TIME_GOAL)
        yield missing(f"{name}: host CPU, to QEMU with its device", "×", failed, CPU_GOAL)
        return
    for whose, runs in (("balloond", ours), ("QEMU's device", theirs)):
        yield of_samples(f"{name}, {whose}: to actual", "s", [r.actual_s for r in runs])
        yield of_samples(f"{name}, {whose}: to 99 % freed", "s", [r.freed_s for r in runs])
        yield of_samples(f"{name}, {whose}: host CPU", "s", [r.cpu_s for r in runs])
        yield of_samples(f"{name}, {whose}: giving back", "s", [r.back_s for r in runs])
        yield of_samples(f"{name}, {whose}: CPU, giving back", "s", [r.back_cpu_s for r in runs])
    yield of_samples(
        f"{name}: seconds to actual, to QEMU's device",
        "×",
        ratios([r.actual_s for r in ours], [r.actual_s for r in theirs]),
    )
    yield of_samples(
        f"{name}: seconds to 99 % freed, to QEMU's device",
        "×",
        ratios([r.freed_s for r in ours], [r.freed_s for r in theirs]),
        TIME_GOAL,
        failed,
    )
    yield of_samples(
        f"{name}: host CPU, to QEMU with its device",
        "×",
        ratios([r.cpu_s for r in ours], [r.cpu_s for r in theirs]),
        CPU_GOAL,
        failed,
    )


def _run(images: Images, *, own_device: bool) -> Run:
    vm = RealVm(images, own_device=own_device)
    try:
        vm.free_memory(FILE_MIB)
        blocks, cpu = vm.blocks_bytes(), vm.cpu_s()
        begun = time.perf_counter()
        vm.take()
        if vm.daemon is not None:
            vm.daemon.wait_target(TARGET_BYTES)
            vm.daemon.host.set_enough()
        freed = wait(
            lambda: blocks - vm.blocks_bytes() >= ENOUGH * TARGET_BYTES, "99 % of 1 GiB freed"
        )
        actual = wait(lambda: vm.has_reached(TARGET_BYTES), "1 GiB in the balloon")
        taken_cpu = vm.cpu_s()
        vm.give_back()
        back_begun = time.perf_counter()
        back = wait(lambda: vm.has_reached(0), "an empty balloon")
        return Run(
            actual_s=actual - begun,
            freed_s=freed - begun,
            cpu_s=taken_cpu - cpu,
            back_s=back - back_begun,
            back_cpu_s=vm.cpu_s() - taken_cpu,
        )
    finally:
        vm.close()
