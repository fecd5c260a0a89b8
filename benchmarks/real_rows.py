"""The rows of ``make bench ARGS=compare`` with real guests: one for each build, under TCG."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from balloon_daemon.units import MIB
from benchmarks.page_reporting import FILE_MIB as REPORTED_MIB
from benchmarks.page_reporting import WATCH_S
from benchmarks.real_guest import ENOUGH, FILE_MIB
from benchmarks.real_vm import TARGET_BYTES, RealVm, wait
from benchmarks.turns import Pair, Samples, places
from tests.vm.images import ready_images

CYCLES = 5
"""How often a balloon has been inflated and deflated before anything is measured: by then the
guest's free memory lies as it does in a guest that has run for long."""


def long_lived(pair: Pair, runs: int) -> Iterator[list[Samples]]:
    """The host's CPU for 1 GiB of 2, from guests that have been ballooned before."""
    with _vms(pair) as vms:
        for _ in range(CYCLES):
            for vm in vms:
                _inflate(vm)
                _deflate(vm)
        for run in range(runs):
            found: list[Samples] = [{}, {}]
            for place in places(run):
                found[place] = {"real guest, 1 GiB: host CPU, s": _taking_s(vms[place])}
            yield found


def init_on_free(pair: Pair, runs: int) -> Iterator[list[Samples]]:
    """What is back of a deleted file by page reports alone, where the guest clears what it frees.

    Both guests are watched in the same seconds: the base's had nothing to do in them.
    """
    with _vms(pair, "init_on_free=1", page_reporting=True) as vms:
        for _ in range(runs):
            held = []
            for vm in vms:
                vm.free_memory(REPORTED_MIB)
                held.append((vm.blocks_bytes(), time.monotonic()))
            found = []
            for vm, (blocks, freed_at) in zip(vms, held, strict=True):
                time.sleep(max(0.0, freed_at + WATCH_S - time.monotonic()))
                share = (blocks - vm.blocks_bytes()) / (REPORTED_MIB * MIB)
                name = f"init_on_free=1: a deleted file is back in {WATCH_S:g} s, %"
                # More than all of it is memory that was free before.
                found.append({name: min(max(share, 0.0), 1.0) * 100})
            yield found


@contextmanager
def _vms(
    pair: Pair, kernel_options: str = "", *, page_reporting: bool = False
) -> Iterator[Sequence[RealVm]]:
    images = ready_images()
    with ExitStack() as stack:
        vms = []
        for build in pair:
            vm = RealVm(
                images,
                own_device=False,
                page_reporting=page_reporting,
                program=build.program,
                kernel_options=kernel_options,
            )
            stack.callback(vm.close)
            vms.append(vm)
        yield vms


def _taking_s(vm: RealVm) -> float:
    """CPU seconds of QEMU and balloond until the balloon is full and 99 % of it are freed."""
    vm.free_memory(FILE_MIB)
    blocks, before = vm.blocks_bytes(), vm.cpu_s()
    _inflate(vm)
    wait(lambda: blocks - vm.blocks_bytes() >= ENOUGH * TARGET_BYTES, "99 % of 1 GiB freed")
    took_s = vm.cpu_s() - before
    _deflate(vm)
    return took_s


def _inflate(vm: RealVm) -> None:
    assert vm.daemon is not None
    vm.take()
    vm.daemon.wait_target(TARGET_BYTES)
    vm.daemon.host.set_enough()
    wait(lambda: vm.has_reached(TARGET_BYTES), "1 GiB in the balloon")


def _deflate(vm: RealVm) -> None:
    vm.give_back()
    wait(lambda: vm.has_reached(0), "an empty balloon")
