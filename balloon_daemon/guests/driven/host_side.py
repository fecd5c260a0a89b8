"""What the host's kernel says of a VMM's process: the memory and the disk reads of its VM.

Runs in the controller. All figures are None, and all answers "no", for a process that is gone or
may not be examined. Nothing here waits: the kernel answers by itself.
"""

import os
import re

from balloon_daemon.units import KIB

_READ_BYTES = 16 * KIB
"""More than any of the files read here has."""

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

_PINNING = ("/dev/vfio/", "/dev/iommu", "/dev/vhost-vdpa")
"""What a VMM has open for a device that reaches guest memory by DMA, past the VMM: all of its
memory is pinned. Source: Linux, driver-api/vfio.rst, userspace-api/iommufd.rst."""

_HUGE_PAGES = re.compile(rb"^HugetlbPages:\s+([0-9]+) kB$", re.MULTILINE)
_READ = re.compile(rb"^rchar: ([0-9]+)$", re.MULTILINE)


class HostSide:
    """A VMM's process, as the host's kernel sees it.

    Args:
        pid: its number; None: unknown. 0 is what SO_PEERCRED says of a process of another PID
            namespace, 1 is the service manager, which listened in the VMM's place: both are
            unknown, too.
        memory_file: the path of the file that the VM's memory is (``/proc/PID/fd/N``); "": none.
    """

    def __init__(self, pid: int | None, memory_file: str) -> None:
        self.pid = pid if pid is not None and pid > 1 else None
        # Keep /proc/PID open: names in it are refused (ESRCH) once that process is gone, even if
        # another process has its number by then.
        self._proc = -1
        if self.pid is not None:
            try:
                self._proc = os.open(f"/proc/{self.pid}", os.O_PATH | os.O_CLOEXEC)
            except OSError:
                self.pid = None
        self._memory_file = memory_file.removeprefix(f"/proc/{pid}/")
        self.start_time = self._start_time()
        """When the process started, in clock ticks since boot; 0: unknown. With the process id it
        names one process for good."""

    @property
    def has_memory_file(self) -> bool:
        """Whether the VM's memory is a file whose blocks are counted."""
        return bool(self._memory_file)

    def close(self) -> None:
        """Forgets the process; all figures are unknown from then on."""
        if self._proc >= 0:
            os.close(self._proc)
            self._proc = -1

    def held_bytes(self) -> int | None:
        """How much of the host's memory the VM's memory occupies.

        The blocks of its memory file, else the resident set of the whole process: /proc/PID/statm
        costs microseconds, as the kernel counts that figure, where smaps_rollup would walk the
        page tables of the whole guest.
        """
        if self._memory_file:
            try:
                return os.stat(self._memory_file, dir_fd=self._directory()).st_blocks * 512
            except OSError:
                return None
        try:
            return int(self._read("statm").split()[1]) * _PAGE_BYTES
        except (OSError, ValueError, IndexError):
            return None

    def disk_read_bytes(self) -> int | None:
        """How much the process has read, from files, disks and sockets (``rchar``).

        Of a VMM nearly all of it is what its guest has read from its disks. Not known without the
        right to trace the process (proc(5)), nor for disks that another process serves.
        """
        try:
            found = _READ.search(self._read("io"))
        except OSError:
            return None
        return None if found is None else int(found[1])

    def is_pinned(self) -> bool:
        """Whether the process holds a device that pins the guest's memory (VFIO, vDPA)."""
        try:
            fds = os.open("fd", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._directory())
        except OSError:
            return False
        try:
            return any(_link(name, fds).startswith(_PINNING) for name in os.listdir(fds))
        except OSError:
            return False
        finally:
            os.close(fds)

    def is_hugetlb(self) -> bool:
        """Whether the guest's memory is in pages of hugetlbfs.

        Without a memory file: whether the process has more memory in such pages than in all
        others, as the resident set does not count them.
        """
        try:
            if self._memory_file:
                return self._memory_page_bytes() > _PAGE_BYTES
            found = _HUGE_PAGES.search(self._read("status"))
        except OSError:
            return False
        return found is not None and int(found[1]) * KIB > (self.held_bytes() or 0)

    def _memory_page_bytes(self) -> int:
        # O_PATH: the file itself must not be opened, as it may be a device or on a server.
        file = os.open(self._memory_file, os.O_PATH | os.O_CLOEXEC, dir_fd=self._directory())
        try:
            return os.fstatvfs(file).f_bsize
        finally:
            os.close(file)

    def _start_time(self) -> int:
        try:
            # The second field, the program's name in parentheses, may have any characters.
            fields = self._read("stat").rpartition(b")")[2].split()
            return int(fields[19])  # Field 22 of proc_pid_stat(5).
        except (OSError, ValueError, IndexError):
            return 0

    def _read(self, name: str) -> bytes:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._directory())
        try:
            return os.read(fd, _READ_BYTES)
        finally:
            os.close(fd)

    def _directory(self) -> int:
        if self._proc < 0:
            raise ProcessLookupError
        return self._proc


def _link(name: str, directory: int) -> str:
    try:
        return os.readlink(name, dir_fd=directory)
    except OSError:
        return ""  # Closed meanwhile.
