"""What the kernel says of a VMM's process, asked of real processes with real memory files."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from balloon_daemon.events.driven import Fault
from balloon_daemon.guests.driven.host_side import HostSide
from balloon_daemon.guests.driven.lookups import ask_here
from balloon_daemon.linux.memory import create_memfd
from balloon_daemon.units import MIB
from tests.harness.host_setting import NR_HUGEPAGES, changed
from tests.harness.processes import counts_its_reads
from tests.harness.vmm_files import held_bytes, host_side

VMM = "import sys; memory = bytearray(64 << 20); print(flush=True); sys.stdin.read()"
"""A process with 64 MiB of memory that it has written."""

PAGES = 32
HUGE_VMM = """
import mmap, os, sys
fd = os.memfd_create("guest", os.MFD_HUGETLB)
size = int(sys.argv[1]) << 21
os.ftruncate(fd, size)
memory = mmap.mmap(fd, size)
for page in range(0, size, 1 << 21):
    memory[page] = 1
print(flush=True)
sys.stdin.read()
"""
"""A process that has as many pages of 2 MiB as it is told, from the host's pool."""


@pytest.fixture
def vmm() -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", VMM]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def looked(host: HostSide) -> Fault | None:
    return asyncio.run(host.look(ask_here))


def test_resident_set_is_what_a_process_holds(vmm: subprocess.Popen[bytes]) -> None:
    held_bytes = host_side(vmm.pid).held_bytes()
    assert held_bytes is not None
    assert 64 * MIB <= held_bytes < 128 * MIB


def test_blocks_of_the_memory_file_are_what_a_vm_holds() -> None:
    fd = create_memfd("memory", size_bytes=64 * MIB)

    async def scene() -> list[int | None]:
        host = host_side(os.getpid(), f"/proc/{os.getpid()}/fd/{fd}")
        found: list[int | None] = [held_bytes(host)]
        os.pwrite(fd, b"1" * 3 * MIB, 5 * MIB)
        found.append(held_bytes(host))
        os.close(fd)
        return [*found, host.held_bytes()]

    assert asyncio.run(scene()) == [0, 3 * MIB, None]


def test_what_a_process_has_read_is_counted(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"1" * MIB)
    while not counts_its_reads(os.getpid()):
        disk.read_bytes()
    host = host_side(os.getpid())
    before = host.disk_read_bytes()
    disk.read_bytes()
    after = host.disk_read_bytes()
    assert before is not None
    assert after is not None
    assert MIB <= after - before < 2 * MIB


def test_process_that_has_ended_has_no_figures(vmm: subprocess.Popen[bytes]) -> None:
    host = host_side(vmm.pid)
    assert host.pid == vmm.pid
    assert host.started > 0
    vmm.kill()
    vmm.wait()
    assert looked(host) is None
    assert (host.pid, host.held_bytes(), host.disk_read_bytes()) == (0, None, None)
    assert host_side(vmm.pid).pid == 0


@pytest.mark.parametrize("pid", [None, -1, 0, 1, 1 << 40])
def test_process_that_is_not_known_has_no_figures(pid: int | None) -> None:
    host = host_side(pid)
    assert (host.pid, host.started) == (0, 0)
    assert (host.held_bytes(), host.disk_read_bytes()) == (None, None)
    assert looked(host) is None


def test_process_of_another_start_is_another_one(vmm: subprocess.Popen[bytes]) -> None:
    one, same = host_side(vmm.pid), host_side(vmm.pid)
    assert (one.pid, one.started) == (same.pid, same.started)
    assert one.started != host_side(os.getppid()).started


def test_ordinary_process_pins_nothing_and_has_no_huge_pages(
    vmm: subprocess.Popen[bytes],
) -> None:
    assert looked(host_side(vmm.pid)) is None


def test_process_with_more_huge_pages_than_others_is_found() -> None:
    try:
        with changed(NR_HUGEPAGES, lambda before: str(int(before) + PAGES)) as before:
            if int(NR_HUGEPAGES.read_text()) != int(before) + PAGES:
                pytest.skip(f"needs {PAGES} huge pages that the kernel can make")
            command = [sys.executable, "-c", HUGE_VMM, str(PAGES)]
            with subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            ) as process:
                assert process.stdout is not None
                process.stdout.readline()
                found = looked(host_side(process.pid))
                process.kill()
    except OSError as err:
        pytest.skip(f"needs root, to change {NR_HUGEPAGES}: {err.strerror}")
    assert found is Fault.HUGETLB


def test_process_with_a_device_of_vfio_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # No machine of the tests has such a device: a file of another name stands for it.
    (tmp_path / "vfio").touch()
    monkeypatch.setattr("balloon_daemon.guests.driven.host_side.PINNING", (f"{tmp_path}/",))
    with (tmp_path / "vfio").open():
        assert looked(host_side(os.getpid())) is Fault.PINNED
    assert looked(host_side(os.getpid())) is None
