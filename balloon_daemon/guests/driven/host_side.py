"""What the host's kernel says of a VMM's process: the memory and the disk reads of its VM.

Runs in the controller. All figures are None, and all answers "no", for a process that is gone or
may not be examined, and for one that keeps its readers waiting: that is for a moment only
(``reading_child.py``). What it has open children list (``vmm_process.py``); all else the kernel
answers by itself.
"""

from balloon_daemon.events.driven import Fault
from balloon_daemon.guests.driven.lookups import Ask
from balloon_daemon.guests.driven.vmm_process import open_files
from balloon_daemon.linux.file_access import as_user_of
from balloon_daemon.linux.libc import blocks_of
from balloon_daemon.linux.process_figures import (
    ProcessFigures,
    huge_page_bytes_of,
    start_time_of,
)

PINNING = ("/dev/vfio/", "/dev/iommu", "/dev/vhost-vdpa")
"""Files that a VMM has open for an assigned device: the device reaches guest memory by DMA, so the
kernel pins all of this memory, and a balloon frees nothing.

Source: Linux, driver-api/vfio.rst, userspace-api/iommufd.rst."""


class HostSide:
    """A VMM's process, as the host's kernel sees it.

    Args:
        pid: its number; None: unknown. 0 and 1 mean unknown, too: SO_PEERCRED gives 0 for a
            process outside our PID namespace, and 1 where systemd made the listening socket for
            the VMM.
        memory_file: the path of the file that the VM's memory is (``/proc/PID/fd/N``); "": none.

    Raises:
        OSError: the process exists, but its figures cannot be read now.
    """

    def __init__(self, pid: int | None, memory_file: str = "") -> None:
        started = None if pid is None or pid <= 1 else start_time_of(pid)
        self._pid = 0 if pid is None or started is None else pid
        self._started = started or 0
        self._figures = ProcessFigures(self._pid)
        self._memory_file = memory_file
        self.is_closed = False
        """Whether ``look`` was not allowed to see what the process has open."""

    @property
    def pid(self) -> int:
        """The process's number; 0: unknown."""
        return self._pid

    @property
    def started(self) -> int:
        """When the process started, in clock ticks since boot; 0: unknown."""
        return self._started

    @property
    def tells_disk_reads(self) -> bool:
        """Whether ``disk_read_bytes`` can be known, now or later."""
        return self._figures.may_tell_reads()

    @property
    def has_memory_file(self) -> bool:
        """Whether the VM's memory is a file whose blocks are counted."""
        return bool(self._memory_file)

    def held_bytes(self) -> int | None:
        """How much of the host's memory the VM's memory occupies: the blocks of its memory file,
        else the resident set of the whole process."""
        if not self._memory_file:
            return self._figures.resident_bytes()
        # Do not open the file, not even with O_PATH. Closing it would take long if the VMM has put
        # many locks on it, or if the VMM ends meanwhile: the last close frees all of the memory.
        with as_user_of(self._pid):
            blocks = blocks_of(self._memory_file)
        return None if blocks is None else blocks * 512

    def disk_read_bytes(self) -> int | None:
        """How many bytes the process has read from storage: nearly all of a VMM's are its guest's
        disk reads."""
        return self._figures.read_bytes()

    async def look(self, ask: Ask) -> Fault | None:
        """Looks for a reason why this VM's balloon would free nothing; None: there is none.

        A child reads the link of each of the process's descriptors: call this only now and then.

        Args:
            ask: has a child look.

        Raises:
            ControlError: ``HANGS``: what the process has open cannot be listed now.
        """
        if self._pid and not self._is_there():
            # The VMM has ended, and another process may have its number by now.
            self._pid = 0
            self._figures = ProcessFigures(0)
        files = await open_files(self._pid, PINNING, ask)
        # A VMM has its socket open at least; a process that is ending has no memory any more.
        self.is_closed = not files.are_seen and self._figures.resident_bytes() is not None
        if files.found:
            return Fault.PINNED
        # The resident set does not count pages of hugetlbfs. Where the guest's memory is in such
        # pages, the resident set is only the VMM's own memory, which is less.
        huge_bytes = huge_page_bytes_of(self._pid) or 0
        if huge_bytes > (self._figures.resident_bytes() or 0):
            return Fault.HUGETLB
        return None

    def _is_there(self) -> bool:
        try:
            return start_time_of(self._pid) == self._started
        except OSError:
            return True  # The process exists, but its start time cannot be read now.
