"""A snapshot that fills a driven VM's memory file again, with a real memory file."""

import asyncio
import mmap
import os
from dataclasses import replace
from pathlib import Path

from balloon_daemon.events import Event, Refilled
from balloon_daemon.guests.driven.bases import Bases
from balloon_daemon.guests.driven.control import Notice
from balloon_daemon.guests.driven.lookups import ask_here
from balloon_daemon.guests.driven.reporting import Shared
from balloon_daemon.guests.driven.vm import DrivenVm
from balloon_daemon.guests.driven.waking import Notices
from balloon_daemon.guests.seam import GuestState, Report, StateChanged
from balloon_daemon.linux.memory import create_memfd
from balloon_daemon.units import MIB, VmId
from tests.fakes.quick_loop import run_quickly
from tests.fakes.scripted_control import FOUND, ScriptedControl
from tests.harness.faults import fault
from tests.harness.vmm_files import held_bytes, host_side

VM = VmId(1, "web")
MADV_POPULATE_READ = 22
"""asm-generic/mman-common.h, since Linux 5.14; Python's mmap module does not have it."""

SIZE, TARGET = 512 * MIB, 128 * MIB


class Vmm(ScriptedControl):
    """A VM whose balloon is a hole at the beginning of its memory file."""

    def __init__(self) -> None:
        self.fd = create_memfd("memory", size_bytes=SIZE)
        self.memory = mmap.mmap(self.fd, SIZE)
        path = f"/proc/{os.getpid()}/fd/{self.fd}"
        super().__init__(replace(FOUND, vm_mem_bytes=SIZE, memory_file=path))
        self.read_all()

    def read_all(self) -> None:
        """Reads all memory, as a snapshot does."""
        self.memory.madvise(MADV_POPULATE_READ)

    async def set_balloon(self, balloon_bytes: int) -> None:
        before = self.found.balloon_bytes or 0
        await super().set_balloon(balloon_bytes)
        if balloon_bytes > before:
            self.memory.madvise(mmap.MADV_REMOVE, before, balloon_bytes - before)

    def close(self) -> None:
        super().close()
        self.memory.close()
        os.close(self.fd)


@fault("a snapshot or a migration to a file fills")
def test_memory_that_a_snapshot_filled_is_freed_again(tmp_path: Path) -> None:
    events: list[Event] = []
    states: list[GuestState] = []

    def report(vm: VmId, report: Report) -> None:
        if isinstance(report, StateChanged):
            states.append(report.state)

    async def run() -> None:
        vmm, notices = Vmm(), Notices()
        host = host_side(os.getpid(), vmm.found.memory_file)
        bases = Bases(tmp_path / "bases", events.append)
        shared = Shared(events.append, report, bases, ask=ask_here)
        guest = DrivenVm(VM, vmm, vmm.found, host, notices, shared)
        task = asyncio.create_task(guest.serve())
        guest.watch(1.0)
        guest.set_target(TARGET)
        await asyncio.sleep(5)
        assert held_bytes(host) == SIZE - TARGET
        vmm.read_all()
        assert held_bytes(host) == SIZE
        await asyncio.sleep(30)
        assert held_bytes(host) == SIZE  # Nobody has said so.
        notices.put(Notice.REFILLED)
        await asyncio.sleep(30)
        assert held_bytes(host) == SIZE - TARGET
        step = SIZE // 16
        assert vmm.targets == [TARGET, 0, step, 2 * step, 3 * step, TARGET]
        task.cancel()
        await asyncio.wait([task])

    run_quickly(run())
    assert events == [Refilled(VM, TARGET)]
    assert states == [GuestState.RETAKING, GuestState.RUNNING]
