"""Pages of the host's memory, as the kernel numbers them, counted for several processes."""

import mmap
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from balloon_daemon.units import MIB, PAGE_SIZE
from benchmarks.guest_file import GuestFile
from benchmarks.memory_row import frames
from tests.harness.needs import needs_root

PAGES = 16 * MIB // PAGE_SIZE
"""Many more than a process gets or loses between two looks at it."""

SHARES = """\
import mmap, sys
shared = mmap.mmap(int(sys.argv[1]), 0)
sum(shared[::mmap.PAGESIZE])
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def sharing() -> Iterator[int]:
    """Another process, which has PAGES pages of a file that this process has, too."""
    fd = os.memfd_create("shared")
    os.ftruncate(fd, PAGES * PAGE_SIZE)
    with mmap.mmap(fd, 0) as shared:
        shared.write(b"\1" * len(shared))
        command = [sys.executable, "-c", SHARES, str(fd)]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, pass_fds=[fd], stdin=pipe, stdout=pipe) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield process.pid
            process.communicate()
    os.close(fd)


@needs_root
def test_page_that_two_processes_have_is_counted_once(sharing: int) -> None:
    own, other = frames([os.getpid()]), frames([sharing])
    assert min(own, other) >= PAGES
    assert own + other - frames([os.getpid(), sharing]) >= PAGES


@needs_root
def test_memory_of_the_benchmark_s_guest_is_not_counted() -> None:
    before = frames([os.getpid()])
    file = GuestFile.in_memory(PAGES * PAGE_SIZE)
    file.touch()
    assert frames([os.getpid()]) - before < PAGES // 2
    file.close()
