"""Guest memory files: how to map, make and measure them."""

import fcntl
import mmap
import os

from balloon_daemon.errors import MemoryFileError
from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.units import format_size

# linux/fcntl.h. Only files of shmem and hugetlbfs answer F_GET_SEALS; every other file system
# refuses it with EINVAL.
F_GET_SEALS = 1034
F_ADD_SEALS = 1033
F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_WRITE, F_SEAL_FUTURE_WRITE = 1, 2, 4, 8, 16

MAP_NORESERVE = 0x4000
"""asm-generic/mman-common.h; the mmap module has the constant from Python 3.13 on."""


def map_shared(fd: int, size_bytes: int, offset_bytes: int) -> mmap.mmap:
    """Maps a part of a file, shared, readable and writable.

    MAP_NORESERVE (mmap(2)): otherwise a mapping of hugetlbfs would again reserve the pages that
    the balloon has given back, from a pool that another VM may be using by now.

    Raises:
        MemoryFileError: the file is too short, or the address space is too small.
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
        # Raised where Python's mmap module finds the file shorter than the mapping. Its message
        # gives neither length, so the error gives both.
        raise MemoryFileError(
            f"guest memory up to byte {offset_bytes + size_bytes} is to be mapped, but its file "
            f"has {os.fstat(fd).st_size} bytes: the VMM cut it short"
        ) from err
    except OSError as err:
        raise MemoryFileError(
            f"{format_size(size_bytes)} of guest memory cannot be mapped: {err.strerror}"
        ) from err


def create_memfd(name: str, *, size_bytes: int = 0, content: bytes | None = None) -> int:
    """Makes an anonymous memory file that other processes may keep open.

    Args:
        name: shown in /proc/PID/fd.
        size_bytes: its length, all zero.
        content: given instead of a length: its content, sealed for good (fcntl(2), F_ADD_SEALS).

    Returns:
        A close-on-exec file descriptor, which the caller owns.
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


def memory_inode(fd: int) -> tuple[int, int] | None:
    """The device and inode of a memory file (shmem, hugetlbfs); None for any other file.

    Another file is not asked: for a file of FUSE, fstat(2) would wait for its server.
    """
    try:
        fcntl.fcntl(fd, F_GET_SEALS)
    except OSError:
        return None
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def read_sealed(fd: int, limit_bytes: int) -> bytes:
    """Reads a memfd that is sealed, so that no process can change it.

    Raises:
        ValueError: the memfd is not sealed against writing, or too long.
        OSError: the descriptor is no memfd.
    """
    if not fcntl.fcntl(fd, F_GET_SEALS) & F_SEAL_WRITE:
        raise ValueError("is not sealed")
    size = os.fstat(fd).st_size
    if size > limit_bytes:
        raise ValueError(f"has {size} bytes, at most {limit_bytes} are allowed")
    return os.pread(fd, size, 0)


class FileUse(NamedTuple):
    """The memory that a file of shared memory uses at this moment.

    Attributes:
        identity: (st_dev, st_ino), equal for two descriptors of one file.
        size_bytes: its length.
        held_bytes: how many bytes of it occupy memory or swap.
        limit_bytes: the size limit of its file system; None where there is none.
        free_bytes: the free bytes below that limit, for all of its files together.
    """

    identity: tuple[int, int]
    size_bytes: int
    held_bytes: int
    limit_bytes: int | None
    free_bytes: int


def memory_file_use(fd: int) -> FileUse:
    """The memory use of a file of shmem or hugetlbfs; the kernel answers by itself.

    Raises:
        OSError: the descriptor is no such file.
    """
    fcntl.fcntl(fd, F_GET_SEALS)
    status, room = os.fstat(fd), os.fstatvfs(fd)
    # shmem reports f_blocks 0 where the file system has no size limit, as for a memfd (mm/shmem.c,
    # shmem_statfs).
    limit = room.f_blocks * room.f_frsize if room.f_blocks else None
    return FileUse(
        (status.st_dev, status.st_ino),
        status.st_size,
        status.st_blocks * 512,
        limit,
        room.f_bavail * room.f_frsize,
    )
