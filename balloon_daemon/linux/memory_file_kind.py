"""What kinds of files VMMs give as guest memory. Runs in the controller alone."""

import fcntl
import mmap
import os
import stat

from balloon_daemon.errors import printable
from balloon_daemon.linux.libc import mount_of
from balloon_daemon.linux.memory import F_GET_SEALS, F_SEAL_FUTURE_WRITE, F_SEAL_WRITE
from balloon_daemon.linux.mountinfo import read_lines
from balloon_daemon.named_tuple import NamedTuple


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
    so the mount's number, from which the list tells the type. A file that was opened later may lie
    on a newer mount, whose number an earlier mount had when the list was read.
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
