"""What the host's kernel says of a VMM's process: the memory and the disk reads of its VM.

Runs in the controller. All figures are None, and all answers "no", for a process that is gone or
may not be examined, and for one that keeps its readers waiting: that is for a moment only
(``reading_child.py``), all else the kernel answers by itself.
"""

import os

from balloon_daemon.events.driven import Fault
from balloon_daemon.linux.libc import blocks_of
from balloon_daemon.linux.process_figures import (
    ProcessFigures,
    files_of,
    huge_page_bytes_of,
    start_time_of,
)

PINNING = ("/dev/vfio/", "/dev/iommu", "/dev/vhost-vdpa")
"""What a VMM has open for a device that reaches guest memory by DMA, past the VMM: all of its
memory is pinned. Source: Linux, driver-api/vfio.rst, userspace-api/iommufd.rst."""


class HostSide:
    """A VMM's process, as the host's kernel sees it.

    Args:
        pid: its number; None: unknown. 0 is what SO_PEERCRED says of a process of another PID
            namespace, 1 is the service manager, which listened in the VMM's place: both are
            unknown, too.
        memory_file: the path of the file that the VM's memory is (``/proc/PID/fd/N``); "": none.
    """

    def __init__(self, pid: int | None, memory_file: str = "") -> None:
        started = None if pid is None or pid <= 1 else start_time_of(pid)
        self._pid = 0 if pid is None or started is None else pid
        self._started = started or 0
        self.is_stuck = bool(
            pid and pid > 1 and started is None and os.path.exists(f"/proc/{pid}")
        )
        """Whether the process is there, and could not be looked at in time."""
        self._figures = ProcessFigures(self._pid)
        self._memory_file = memory_file

    @property
    def pid(self) -> int:
        """The process's number; 0: unknown."""
        return self._pid

    @property
    def started(self) -> int:
        """When the process started, in clock ticks since boot; 0: unknown."""
        return self._started

    @property
    def has_memory_file(self) -> bool:
        """Whether the VM's memory is a file whose blocks are counted."""
        return bool(self._memory_file)

    def held_bytes(self) -> int | None:
        """How much of the host's memory the VM's memory occupies: the blocks of its memory file,
        else the resident set of the whole process."""
        if not self._memory_file:
            return self._figures.resident_bytes()
        # Not opened, not even for a moment (O_PATH): its VMM may have put so many locks on it that
        # the close would take long, or may end, and the close would free the memory.
        blocks = blocks_of(self._memory_file)
        return None if blocks is None else blocks * 512

    def disk_read_bytes(self) -> int | None:
        """How much the process has read: of a VMM nearly all is what its guest has read from its
        disks."""
        return self._figures.read_bytes()

    def look(self) -> Fault | None:
        """Looks for a reason why this VM's balloon would free nothing; None: there is none.

        Takes as long as the process has files, and so is for now and then.
        """
        if self._pid and start_time_of(self._pid) not in (None, self._started):
            # The number may be another process's by now.
            self._pid = 0
            self._figures = ProcessFigures(0)
        if any(link.startswith(PINNING) for _, link in files_of(self._pid)):
            return Fault.PINNED
        # The resident set leaves pages of hugetlbfs out, so it is the VMM's own memory where the
        # guest's is in such pages.
        huge_bytes = huge_page_bytes_of(self._pid) or 0
        if huge_bytes > (self._figures.resident_bytes() or 0):
            return Fault.HUGETLB
        return None
