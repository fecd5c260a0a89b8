"""A VMM on the service's machine: another user's process, whose balloon frees its own memory.

``python3 -m tests.harness.service_vmm KIND SOCKET``. The kinds:

- ``qmp``: QEMU's monitor, the VM's memory in a memfd, as QEMU's memory-backend-memfd has it.
- ``gives-nothing``: the same, whose balloon frees nothing.
- ``assigned``: the same, which has a device of VFIO open.
- ``no-memory``: the same, without memory.
- ``firecracker``: Firecracker's API, the VM's memory in anonymous pages. From SIGUSR1 on its guest
  has no free memory and reads its disk all the time.
"""

import asyncio
import mmap
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from balloon_daemon.units import MIB
from tests.fakes.firecracker import FakeFirecracker
from tests.harness.scripted_monitor import ScriptedMonitor, ScriptedVm

VM_MEM = 640 * MIB
"""Half of it is more than the 256 MiB and a 64th that a VMM's own memory may be."""

EVERY_S = 0.02
VFIO = "/dev/vfio/7"
"""A file of this name on the service's machine, which has no such device."""

DISK = sys.executable
DISK_READ_BYTES = 4 * MIB
"""What the guest reads each ``EVERY_S``."""


class MemoryFile:
    """The VM's memory in a memfd: the balloon takes it from the end."""

    def __init__(self) -> None:
        self._fd = os.memfd_create("memory-backend-memfd")
        self._bytes = 0
        self.follow(0)

    def follow(self, balloon_bytes: int) -> None:
        """Frees what is in the balloon, and writes to what is no longer."""
        size_bytes = VM_MEM - balloon_bytes
        os.ftruncate(self._fd, size_bytes)
        for at in range(self._bytes, size_bytes, MIB):
            os.pwrite(self._fd, b"1" * min(MIB, size_bytes - at), at)
        self._bytes = size_bytes


class AnonymousMemory:
    """The VM's memory in the process's own pages."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, VM_MEM, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._bytes = 0
        self.follow(0)

    def follow(self, balloon_bytes: int) -> None:
        """As ``MemoryFile`` does."""
        size_bytes = VM_MEM - balloon_bytes
        if size_bytes < self._bytes:
            self._map.madvise(mmap.MADV_DONTNEED, size_bytes, self._bytes - size_bytes)
        for at in range(self._bytes, size_bytes, mmap.PAGESIZE):
            self._map[at] = 1
        self._bytes = size_bytes


async def follow(size: Callable[[], int], memory: MemoryFile | AnonymousMemory | None) -> None:
    """Lets memory follow the balloon until it is cancelled."""
    followed = 0
    while True:
        if memory is not None and (now := size()) != followed:
            memory.follow(now)
            followed = now
        await asyncio.sleep(EVERY_S)


async def serve_qmp(path: Path, memory: MemoryFile | None = None) -> None:
    """Serves a monitor until the process is killed."""
    vm = ScriptedVm(ram_bytes=VM_MEM, actual=VM_MEM, reports=True)
    vm.properties["/objects/mem0", "type"] = "memory-backend-memfd"
    vm.boot()
    vm.send_stats(free_memory=300 * MIB, available_memory=400 * MIB)
    async with ScriptedMonitor(path, vm):
        await follow(lambda: VM_MEM - int(vm.actual), memory)


async def serve_firecracker(path: Path) -> None:
    """Serves the API until the process is killed."""
    stats: dict[str, object] = {"free_memory": 300 * MIB, "available_memory": 400 * MIB}
    reads = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, reads.set)

    async def run_guest(vmm: FakeFirecracker, disk: int) -> None:
        sent = 0
        while True:
            sent += 1
            free = {"free_memory": 0} if reads.is_set() else {}
            vmm.stats = stats | free | {"minor_faults": sent}
            if reads.is_set():
                os.pread(disk, DISK_READ_BYTES, 0)
            await asyncio.sleep(EVERY_S)

    memory = AnonymousMemory()
    with open(DISK, "rb") as disk:
        async with FakeFirecracker(path, mem_size_mib=VM_MEM // MIB) as vmm:
            guest = asyncio.create_task(run_guest(vmm, disk.fileno()))
            await follow(lambda: int(str(vmm.actual_pages)) * mmap.PAGESIZE, memory)
            await guest


def main() -> None:
    kind, path = sys.argv[1], Path(sys.argv[2])
    match kind:
        case "qmp":
            asyncio.run(serve_qmp(path, MemoryFile()))
        case "gives-nothing":
            MemoryFile()  # Nothing closes its descriptor.
            asyncio.run(serve_qmp(path))
        case "assigned":
            with open(VFIO, "rb"):
                asyncio.run(serve_qmp(path))
        case "no-memory":
            asyncio.run(serve_qmp(path))
        case "firecracker":
            asyncio.run(serve_firecracker(path))


if __name__ == "__main__":
    main()
