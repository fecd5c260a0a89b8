"""Guest memory files: what kind they are, and mapping them."""

import errno
import fcntl
import mmap
import os
from dataclasses import dataclass

from balloon_daemon.errors import MemoryFileError
from balloon_daemon.units import format_size

# linux/fcntl.h; shmem and hugetlbfs answer it, every other file system refuses with EINVAL.
F_GET_SEALS = 1034
F_ADD_SEALS = 1033
F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_WRITE, F_SEAL_FUTURE_WRITE = 1, 2, 4, 8, 16

MAP_NORESERVE = 0x4000
"""asm-generic/mman-common.h; the mmap module has it from Python 3.13 on."""


@dataclass(frozen=True, slots=True)
class MemoryFile:
    """What a region's file can hold and how it gives memory back.

    Attributes:
        size_bytes: its length.
        page_bytes: the smallest piece that MADV_REMOVE frees: 4096 on shmem, else the huge page.
    """

    size_bytes: int
    page_bytes: int


def inspect_memory_file(fd: int) -> MemoryFile:
    """Looks at a file that is to be guest memory, without mapping it.

    Raises:
        ValueError: not shared memory that MADV_REMOVE works on, or not open for writing.
        OSError: the kernel's own refusal.
    """
    # This first: the kernel answers it by itself. What a file of FUSE says to fstat(2) comes from
    # whoever serves it, who may be the enemy, and may take for ever.
    try:
        seals = fcntl.fcntl(fd, F_GET_SEALS)
    except OSError as err:
        if err.errno != errno.EINVAL:
            raise
        raise ValueError("is not shared memory (memfd, tmpfs or hugetlbfs)") from err
    if seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE):
        raise ValueError("is sealed against writing, and so against giving memory back")
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDWR:
        raise ValueError("is not open for reading and writing")
    status = os.fstat(fd)
    return MemoryFile(status.st_size, max(os.fstatvfs(fd).f_bsize, mmap.PAGESIZE))


def map_shared(fd: int, size_bytes: int, offset_bytes: int) -> mmap.mmap:
    """Maps a part of a file, shared, readable and writable.

    Reserves nothing: a mapping of hugetlbfs would otherwise reserve again what the balloon has
    given back, from the pool that another VM may be using by now (mmap(2), MAP_NORESERVE).

    Raises:
        MemoryFileError: the file does not reach that far, or there is no address space for it.
    """
    try:
        return mmap.mmap(
            fd,
            size_bytes,
            flags=mmap.MAP_SHARED | MAP_NORESERVE,
            prot=mmap.PROT_READ | mmap.PROT_WRITE,
            offset=offset_bytes,
        )
    except ValueError as err:
        # The module compares with the file's length itself; its own words name no numbers.
        raise MemoryFileError(
            f"guest memory up to byte {offset_bytes + size_bytes} is to be mapped, but its file "
            f"has {os.fstat(fd).st_size} bytes: the VMM cut it short"
        ) from err
    except OSError as err:
        raise MemoryFileError(
            f"{format_size(size_bytes)} of guest memory cannot be mapped: {err.strerror}"
        ) from err


def create_memfd(name: str, *, size_bytes: int = 0, content: bytes | None = None) -> int:
    """Makes anonymous memory that others may hold on to.

    Args:
        name: shown in /proc/PID/fd.
        size_bytes: its length, all zero.
        content: instead of a length: what it holds, sealed for good (fcntl(2), F_ADD_SEALS).

    Returns:
        A close-on-exec file descriptor, the caller's.
    """
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        if content is None:
            os.ftruncate(fd, size_bytes)
        else:
            os.write(fd, content)
            fcntl.fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_sealed(fd: int, limit_bytes: int) -> bytes:
    """Reads a memfd that nobody can change any more.

    Raises:
        ValueError: it is not sealed against writing, or too long.
        OSError: it is no memfd.
    """
    if not fcntl.fcntl(fd, F_GET_SEALS) & F_SEAL_WRITE:
        raise ValueError("is not sealed")
    size = os.fstat(fd).st_size
    if size > limit_bytes:
        raise ValueError(f"has {size} bytes, at most {limit_bytes} are allowed")
    return os.pread(fd, size, 0)
