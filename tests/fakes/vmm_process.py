"""A fake VMM in a process of its own, as balloond tells VMs apart by their processes.

``python -m tests.fakes.vmm_process KIND SOCKET MIB`` prints its balloon's size, in bytes, at first
and whenever it has changed. MIB is the size that the balloon begins with. Its guest sends
statistics all the time. With SILENT for KIND it is a Cloud Hypervisor whose version has none, with
a VM of 8 GiB.
"""

import asyncio
import sys
from pathlib import Path

from balloon_daemon.config.vms import Kind
from balloon_daemon.units import GIB, MIB
from tests.fakes.cloud_hypervisor import FakeCloudHypervisor
from tests.fakes.crosvm import FakeCrosvm
from tests.fakes.firecracker import FakeFirecracker

EVERY_S = 0.02
SILENT = "silent"
SILENT_GIB = 8
LINUX: dict[str, object] = {
    "free_memory": 700 * MIB,
    "available_memory": 800 * MIB,
    "total_memory": 1000 * MIB,
}


async def serve(
    vmm: FakeFirecracker | FakeCloudHypervisor | FakeCrosvm, balloon_mib: int, *, silent: bool
) -> None:
    """Serves until the process is killed."""
    said, sent = -1, 0
    if isinstance(vmm, FakeFirecracker):
        vmm.actual_pages = balloon_mib * MIB // 4096
    else:
        vmm.actual_bytes = balloon_mib * MIB
    async with vmm:
        while True:
            sent += 1
            stats = LINUX | {"minor_faults": sent}
            if silent:
                pass
            elif isinstance(vmm, FakeCloudHypervisor):
                vmm.balloon_stats = {"last_update": sent, "stats": stats}
            else:
                vmm.stats = stats
            size = vmm.actual_pages if isinstance(vmm, FakeFirecracker) else vmm.actual_bytes
            assert isinstance(size, int)
            size *= 4096 if isinstance(vmm, FakeFirecracker) else 1
            if size != said:
                print(size, flush=True)
            said = size
            await asyncio.sleep(EVERY_S)


def main() -> None:
    kind, path, balloon_mib = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    if kind == SILENT:
        vmm = FakeCloudHypervisor(path, memory={"size": SILENT_GIB * GIB})
        asyncio.run(serve(vmm, balloon_mib, silent=True))
    fakes = {
        Kind.FIRECRACKER: FakeFirecracker,
        Kind.CLOUD_HYPERVISOR: FakeCloudHypervisor,
        Kind.CROSVM: FakeCrosvm,
    }
    asyncio.run(serve(fakes[Kind(kind)](path), balloon_mib, silent=False))


if __name__ == "__main__":
    main()
