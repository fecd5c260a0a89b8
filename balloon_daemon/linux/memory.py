"""Guest memory files: their kinds, and how to map them."""

import fcntl
import mmap
import os
import stat

from balloon_daemon.errors import MemoryFileError, printable
from balloon_daemon.linux.libc import mount_of
from balloon_daemon.linux.mountinfo import read_lines
from balloon_daemon.named_tuple import NamedTuple
from balloon_daemon.units import format_size

# linux/fcntl.h. Only files of shmem and hugetlbfs answer F_GET_SEALS; every other file system
# refuses it with EINVAL.
F_GET_SEALS = 1034
F_ADD_SEALS = 1033
F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_WRITE, F_SEAL_FUTURE_WRITE = 1, 2, 4, 8, 16

MAP_NORESERVE = 0x4000
"""asm-generic/mman-common.h; the mmap module has the constant from Python 3.13 on."""


class MemoryFile(NamedTuple):
    """The size of a region's file, and how it gives memory back.

    Attributes:
        size_bytes: its length; None where only its file system knows, which was not asked.
        page_bytes: the smallest piece that MADV_REMOVE frees: 4096 on shmem, else the huge page.
        never_freed: why no part of it can be given back to the host, as the end of a sentence that
            begins with "it"; empty where it can.
        mappable: True: a process that maps and touches it never waits for a server, only for this
            kernel.
    """

    size_bytes: int | None
    page_bytes: int
    never_freed: str = ""
    mappable: bool = True


LOCAL_FILE_SYSTEMS = frozenset(
    ("bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "jfs", "nilfs2", "xfs", "zfs")
)
"""File systems whose pages this kernel reads by itself. A page of FUSE or NFS comes from a server
that may never answer, and a process that waits for that page cannot be killed."""


MAX_KIND = 32
"""Characters of a file system's type that are kept."""


class FileSystems:
    """The types of the file systems on which open files lie, by one reading of the mounts.

    Ask only for files that were open before the first question: an open file keeps its mount, and
    so the mount's number, from which the list tells the type. Of a file that was opened later, the
    number may have been another mount's in the list.
    """

    def __init__(self) -> None:
        self._lines: dict[bytes, bytes] | None = None

    def kind(self, fd: int) -> str:
        """The type of an open file's file system; "" if unknown.

        The mount's number is also in /proc/PID/fdinfo, but that is not read: for some files (epoll
        instances, tun devices) a read of it takes a lock that another process may hold for long.
        """
        mount = mount_of(fd)
        if mount is None:
            return ""
        if self._lines is None:
            self._lines = _lines_of_mounts()
        line = self._lines.get(b"%d" % mount, b"")
        kind = line.rpartition(b" - ")[2].split(b" ")[0].decode("ascii", "replace")
        # Whoever mounts a file system of FUSE chooses a part of its type, of any length and with
        # any characters.
        return printable(kind[:MAX_KIND])


def _lines_of_mounts() -> dict[bytes, bytes]:
    """The lines of the list of mounts, by the mounts' numbers."""
    try:
        return {line.partition(b" ")[0]: line for line in read_lines()}
    except OSError:
        return {}


def inspect_memory_file(fd: int, file_systems: FileSystems | None = None) -> MemoryFile:
    """Examines a file that is to be guest memory, without mapping it or waiting for a server.

    Raises nothing: a VM's memory table also lists regions that are no RAM (NVDIMMs, shared-memory
    devices, ROMs), with files of any kind.

    Args:
        fd: the file.
        file_systems: tells the file system's type where the file is no memory; None: a new one.
    """
    # Ask for the seals first: the kernel answers by itself, and refuses where the file is no
    # memory file. fstat(2) of a file of FUSE would ask the file system's server, which may be
    # hostile or never answer.
    try:
        seals = fcntl.fcntl(fd, F_GET_SEALS)
    except OSError:
        return _other_file(fd, file_systems or FileSystems())
    status = os.fstat(fd)
    page_bytes = max(os.fstatvfs(fd).f_bsize, mmap.PAGESIZE)
    never_freed = ""
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDWR:
        never_freed = "is not open for reading and writing"
    elif seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE):
        never_freed = "is sealed against writing, and so against giving memory back"
    return MemoryFile(status.st_size, page_bytes, never_freed, mappable=not never_freed)


def _other_file(fd: int, file_systems: FileSystems) -> MemoryFile:
    """Examines a file that is neither shmem nor hugetlbfs; only the kernel is asked."""
    kind = file_systems.kind(fd)
    if kind in LOCAL_FILE_SYSTEMS:
        try:
            writable = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
            status = os.fstat(fd)
        except OSError:
            writable = False
        if writable and stat.S_ISREG(status.st_mode):
            return MemoryFile(status.st_size, mmap.PAGESIZE, f"is a file on {kind}")
    what = f"is a file on {kind}" if kind else "is no file of shared memory"
    return MemoryFile(None, mmap.PAGESIZE, what, mappable=False)


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
