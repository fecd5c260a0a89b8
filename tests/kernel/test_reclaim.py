"""MADV_REMOVE on real memory: memfds of 4 KiB pages, and of huge pages where the host has some."""

import contextlib
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balloon_daemon.device.reclaim import Reclaimer, runs_of
from balloon_daemon.linux.memory import map_shared
from balloon_daemon.linux.memory_file_kind import inspect_memory_file
from balloon_daemon.units import PAGE_SIZE, FrontendAddr, GuestAddr
from balloon_daemon.virtio.guest_memory import GuestMemory, MemoryRegion
from benchmarks.guest_file import GuestFile
from benchmarks.ring_guest import RingGuest
from tests.fakes.recording_map import buffer_of
from tests.harness.daemon import Daemon
from tests.harness.host_setting import NR_HUGEPAGES, changed
from tests.harness.waiting import wait_until

PAGES = 64
FIRST_PFN = 0x10_0000
"""The region begins at 4 GiB: an offset that is taken for an address shows."""
HUGE_BYTES = 2 << 20


def pattern(page: int) -> bytes:
    return (page + 1).to_bytes(8, "little") * (PAGE_SIZE // 8)


def reclaimer_of(mapped: mmap.mmap, page_bytes: int) -> Reclaimer:
    size = len(mapped)
    start = GuestAddr(FIRST_PFN * PAGE_SIZE)
    region = MemoryRegion(start, FrontendAddr(0), size, memoryview(mapped), page_bytes)
    return Reclaimer(GuestMemory([region]), [mapped], refuse, must_tell_host=True)


def refuse(errno: int, addr: int) -> None:
    raise AssertionError(f"the kernel refused to free {addr:#x}: {os.strerror(errno)}")


@settings(max_examples=60)
@given(st.lists(st.lists(st.integers(0, PAGES - 1), min_size=1, max_size=40), max_size=5))
def test_inflate_frees_exactly_the_pages_handed_over(buffers: list[list[int]]) -> None:
    fd = os.memfd_create("reclaim")
    os.ftruncate(fd, PAGES * PAGE_SIZE)
    os.pwrite(fd, b"".join(map(pattern, range(PAGES))), 0)
    reclaimer = reclaimer_of(map_shared(fd, PAGES * PAGE_SIZE, 0), PAGE_SIZE)
    for buffer in buffers:
        pfns = [FIRST_PFN + page for page in buffer]
        reclaimer.inflate("inflateq", 0, runs_of(buffer_of(pfns)))
    gone = {page for buffer in buffers for page in buffer}
    blocks = os.fstat(fd).st_blocks * 512
    content = [os.pread(fd, PAGE_SIZE, page * PAGE_SIZE) for page in range(PAGES)]
    os.close(fd)
    assert blocks == (PAGES - len(gone)) * PAGE_SIZE
    assert content == [
        bytes(PAGE_SIZE) if page in gone else pattern(page) for page in range(PAGES)
    ]


@pytest.fixture
def huge_file() -> Iterator[int]:
    """A memfd of three huge pages, all of them in use."""
    with contextlib.ExitStack() as stack:
        try:
            before = stack.enter_context(changed(NR_HUGEPAGES, lambda n: str(int(n) + 3)))
        except OSError as err:
            pytest.skip(f"needs root, to lend huge pages through {NR_HUGEPAGES}: {err.strerror}")
        fd = os.memfd_create("huge", os.MFD_HUGETLB | os.MFD_HUGE_2MB)
        stack.callback(os.close, fd)
        os.ftruncate(fd, 3 * HUGE_BYTES)
        if int(NR_HUGEPAGES.read_text()) < int(before) + 3:
            pytest.skip("the host has no three huge pages free")
        yield fd


def test_huge_page_is_freed_whole_and_only_when_all_of_it_is_in_the_balloon(
    huge_file: int,
) -> None:
    file = inspect_memory_file(huge_file)
    assert (file.size_bytes, file.page_bytes) == (3 * HUGE_BYTES, HUGE_BYTES)
    mapped = map_shared(huge_file, 3 * HUGE_BYTES, 0)
    for page in range(3):
        mapped[page * HUGE_BYTES : (page + 1) * HUGE_BYTES] = bytes([page + 1]) * HUGE_BYTES
    reclaimer = reclaimer_of(mapped, file.page_bytes)
    middle = [FIRST_PFN + 512 + part for part in range(512)]

    # All but one part, with the neighbours' nearest parts.
    most = [FIRST_PFN + 511, *middle[:-1], FIRST_PFN + 1024]
    for start in range(0, len(most), 256):
        reclaimer.inflate("inflateq", 0, runs_of(buffer_of(most[start : start + 256])))
    assert os.fstat(huge_file).st_blocks * 512 == 3 * HUGE_BYTES
    assert reclaimer.removals == 0

    reclaimer.inflate("inflateq", 0, runs_of(buffer_of(middle[-1:])))
    assert os.fstat(huge_file).st_blocks * 512 == 2 * HUGE_BYTES
    assert (reclaimer.removals, reclaimer.removed_bytes) == (1, HUGE_BYTES)
    assert mapped[:HUGE_BYTES] == b"\x01" * HUGE_BYTES
    assert mapped[2 * HUGE_BYTES :] == b"\x03" * HUGE_BYTES


def test_huge_page_that_is_reported_free_is_freed(huge_file: int) -> None:
    mapped = map_shared(huge_file, 3 * HUGE_BYTES, 0)
    mapped[:] = b"\x07" * len(mapped)
    reclaimer = reclaimer_of(mapped, HUGE_BYTES)
    # From the middle of the first to the end of the last.
    start = FIRST_PFN * PAGE_SIZE + HUGE_BYTES // 2
    reclaimer.discard("reporting_vq", 0, [(start, 5 * HUGE_BYTES // 2)])
    assert os.fstat(huge_file).st_blocks * 512 == HUGE_BYTES
    assert mapped[:HUGE_BYTES] == b"\x07" * HUGE_BYTES


def test_guest_of_huge_pages_is_told_what_they_mean_for_its_host(
    huge_file: int, daemon: Daemon
) -> None:
    file = GuestFile(os.dup(huge_file), 3 * HUGE_BYTES)
    guest = RingGuest(str(daemon.config.socket), file, 16)

    def warnings() -> list[str]:
        return [r["message"] for r in daemon.records() if r["level"] == "warning"]

    wait_until(
        lambda: any("its VMM dies of SIGBUS" in message for message in warnings()),
        what="the warning",
    )
    guest.close()
    file.close()


def test_huge_page_that_was_freed_is_not_reserved_again_by_the_next_mapping(
    huge_file: int,
) -> None:
    mapped = map_shared(huge_file, 3 * HUGE_BYTES, 0)
    mapped[:] = b"\x07" * len(mapped)
    reclaimer_of(mapped, HUGE_BYTES).discard(
        "reporting_vq", 0, [(FIRST_PFN * PAGE_SIZE, 3 * HUGE_BYTES)]
    )
    reserved = reserved_huge_pages()
    # As the device that comes after a crash, a reboot or a restart does.
    mapped.close()
    again = map_shared(huge_file, 3 * HUGE_BYTES, 0)
    assert reserved_huge_pages() == reserved
    again.close()


def reserved_huge_pages() -> int:
    """Pages of hugetlbfs that are promised and not there yet."""
    (line,) = (
        line
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("HugePages_Rsvd:")
    )
    return int(line.split()[1])
