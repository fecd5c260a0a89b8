"""Files as a VMM may list them in its memory table: RAM, and other kinds."""

import fcntl
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from balloon_daemon.linux.memory import F_ADD_SEALS, F_SEAL_FUTURE_WRITE, F_SEAL_WRITE
from balloon_daemon.linux.memory_file_kind import LOCAL_FILE_SYSTEMS, inspect_memory_file
from balloon_daemon.units import FrontendAddr, GuestAddr
from balloon_daemon.vhost_user.messages import RegionDescription

FRONTEND_AT = 0x7F99_0000_0000
"""Where a VMM maps files other than its RAM; far from the fake guest's own addresses."""

MakeFile = Callable[[int], int]
"""(size in bytes) -> a descriptor, which the caller owns."""


def region(
    guest_addr: int, size_bytes: int, *, frontend: int = FRONTEND_AT, offset: int = 0
) -> RegionDescription:
    """A region of a VM's memory table."""
    return RegionDescription(GuestAddr(guest_addr), size_bytes, FrontendAddr(frontend), offset)


def memfd(size_bytes: int, seals: int = 0) -> int:
    """Shared memory with these seals, as of QEMU's memory-backend-memfd."""
    fd = os.memfd_create("memory", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size_bytes)
    if seals:
        fcntl.fcntl(fd, F_ADD_SEALS, seals)
    return fd


def future_sealed(size_bytes: int) -> int:
    """Shared memory to which later mappings cannot write."""
    return memfd(size_bytes, F_SEAL_FUTURE_WRITE)


def write_sealed(size_bytes: int) -> int:
    """Shared memory to which nobody can write, as a ROM's may be."""
    return memfd(size_bytes, F_SEAL_WRITE)


def read_only(size_bytes: int) -> int:
    """Shared memory, open for reading alone."""
    fd = memfd(size_bytes)
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(fd)


def on_disk(size_bytes: int) -> int:
    """A file on a local disk, as an NVDIMM's is. Skips the test where there is none."""
    for folder in (tempfile.gettempdir(), "/var/tmp", str(Path(__file__).parent)):
        try:
            fd = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError:
            continue
        os.ftruncate(fd, size_bytes)
        kind = inspect_memory_file(fd).never_freed.removeprefix("is a file on ")
        if kind in LOCAL_FILE_SYSTEMS:
            return fd
        os.close(fd)
    pytest.skip(f"no folder for files on one of {', '.join(sorted(LOCAL_FILE_SYSTEMS))}")


def on_disk_read_only(size_bytes: int) -> int:
    """A file on a local disk, open for reading only: a ROM, an image that VMs share."""
    fd = on_disk(size_bytes)
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(fd)


def device(size_bytes: int) -> int:
    """A character device, like persistent memory (/dev/dax0.0)."""
    return os.open("/dev/zero", os.O_RDWR | os.O_CLOEXEC)


def pipe(size_bytes: int) -> int:
    """A pipe, which no VMM would send on purpose."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    os.close(reading)
    return writing
