"""The row ``memory`` of ``make bench ARGS=compare``: what all of balloond's processes take.

PSS divides a page by how many processes have it, and those of others count too: each Python that
runs elsewhere makes a balloond's PSS smaller. So the pages that any of its processes has are also
counted by themselves, each once: that is the PSS on a machine on which nothing else runs.
"""

import time
from collections.abc import Iterable
from pathlib import Path
from statistics import median

import numpy as np

from balloon_daemon.units import PAGE_SIZE
from benchmarks.builds import Build
from benchmarks.processes import Balloond, memory_kib
from benchmarks.tiny_guest import VM_MEM, TinyGuest, connect
from benchmarks.turns import Samples, everybody
from tests.harness.waiting import wait_until

ALONE_S = 30.0
GUEST_MEMORY = "/memfd:bench-guest"
"""Of the VMM, not of balloond."""
MIB = 1024
"""KiB in one."""

_PRESENT = np.uint64(1 << 63)
_PFN = np.uint64((1 << 55) - 1)
_ENTRY_BYTES = 8


def memory(build: Build) -> Samples:
    """One VM, then sixteen, each after its first step."""
    found: Samples = {}
    guests: list[TinyGuest] = []
    with Balloond(["--vm-mem", VM_MEM], program=build.program) as daemon:
        for count, name in ((1, "1 VM"), (16, "16 VMs")):
            guests += connect(count - len(guests), daemon.socket)
            devices = daemon.wait_devices(count)
            daemon.host.set_low()
            for guest in guests:
                while not guest.read_target_pages():
                    time.sleep(0.05)
            daemon.host.set_enough()
            wait_alone(daemon, count)
            processes = everybody(daemon)
            pss_kib = sum(memory_kib(pid)["Pss"] for pid in processes)
            found |= {
                f"PSS of all, {name}, MiB": pss_kib / MIB,
                f"pages of all, {name}, MiB": frames(processes) * PAGE_SIZE / (1 << 20),
                f"RSS of the controller, {name}, MiB": memory_kib(daemon.pid)["Rss"] / MIB,
                f"USS of a device, {name}, MiB": median(
                    memory_kib(pid)["Uss"] / MIB for pid in devices
                ),
            }
        for guest in guests:
            guest.close()
    return found


def wait_alone(daemon: Balloond, devices: int) -> None:
    """Waits until no child closes files or looks at processes: only template and devices stay."""
    wait_until(
        lambda: len(everybody(daemon)) == 2 + devices,
        deadline_s=ALONE_S,
        what="no process is left but controller, template and devices",
    )


def frames(processes: Iterable[int]) -> int:
    """How many pages of the host's memory these processes map, each counted once.

    0: the kernel tells no page frame numbers, as to whoever lacks CAP_SYS_ADMIN.

    Source: Documentation/admin-guide/mm/pagemap.rst.
    """
    every = [np.zeros(1, np.uint64)]
    for pid in processes:
        with Path(f"/proc/{pid}/pagemap").open("rb", buffering=0) as pagemap:
            for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
                # What lies in the upper half of the address space is the kernel's (vsyscall).
                if GUEST_MEMORY in line or line.startswith("f"):
                    continue
                start, end = (int(place, 16) for place in line.split(" ", 1)[0].split("-"))
                pagemap.seek(start // PAGE_SIZE * _ENTRY_BYTES)
                content = pagemap.read((end - start) // PAGE_SIZE * _ENTRY_BYTES)
                entries = np.frombuffer(content, np.uint64)
                every.append(entries[(entries & _PRESENT) != 0] & _PFN)
    return int(np.count_nonzero(np.unique(np.concatenate(every))))
