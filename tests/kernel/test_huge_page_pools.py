"""This kernel's own pools of huge pages, as the host's figures have them."""

import contextlib
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from balloon_daemon.linux.meminfo import host_memory
from tests.harness.host_setting import changed

VM = Path("/proc/sys/vm")
PAGES = 16


@contextlib.contextmanager
def more(setting: str) -> Iterator[int]:
    """So many huge pages more, for a while; gives their size in bytes."""
    try:
        with changed(VM / setting, lambda before: str(int(before) + PAGES)) as before:
            if int((VM / setting).read_text()) != int(before) + PAGES:
                pytest.skip("needs 32 MiB that the kernel can make huge pages of")
            yield figure("Hugepagesize") * 1024
    except OSError as err:
        pytest.skip(f"needs root, to change {VM / setting}: {err.strerror}")


def figure(name: str) -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def test_pages_of_a_pool_can_never_be_available() -> None:
    before = host_memory().pool_bytes

    with more("nr_hugepages") as size_bytes:
        during = host_memory().pool_bytes

    assert during == before + PAGES * size_bytes
    assert host_memory().pool_bytes == before


def test_surplus_pages_will_be_ordinary_memory_again() -> None:
    before = host_memory().pool_bytes

    with more("nr_overcommit_hugepages") as size_bytes:
        fd = os.memfd_create("guest", os.MFD_HUGETLB)
        os.ftruncate(fd, PAGES * size_bytes)
        with mmap.mmap(fd, PAGES * size_bytes) as guest:
            os.close(fd)
            for page in range(0, PAGES * size_bytes, size_bytes):
                guest[page] = 1
            surplus, during = figure("HugePages_Surp"), host_memory().pool_bytes

    assert surplus >= PAGES
    assert during == before
