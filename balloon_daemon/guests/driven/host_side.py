"""What the host's kernel says of a VMM's process: the memory and the disk reads of its VM.

Runs in the controller. All figures are None, and all answers "no", for a process that is gone or
may not be examined. They are so for a while, too, if reads of the process's files in /proc are
late or slow (``reading_child.py``). Children look names up in /proc/PID (``vmm_process.py``): they
open the files that the controller reads here, and list what the process has open.
"""

from balloon_daemon.events.driven import Fault
from balloon_daemon.guests.driven import vmm_process
from balloon_daemon.guests.driven.lookups import Ask
from balloon_daemon.guests.driven.memory_files import MEMORY_FILES, MemoryFiles
from balloon_daemon.linux.process_figures import ProcessFigures, ProcessFiles

PINNING = ("/dev/vfio/", "/dev/iommu", "/dev/vhost-vdpa")
"""Files that a VMM has open for an assigned device: the device reaches guest memory by DMA, so the
kernel pins all of this memory, and a balloon frees nothing.

Source: Linux, driver-api/vfio.rst, userspace-api/iommufd.rst."""


class HostSide:
    """A VMM's process, as the host's kernel sees it.

    Args:
        process: the process, with its files; None: unknown.
        memory_file: the path of the file that the VM's memory is (``/proc/PID/fd/N``); "": none.
        files: asks for the blocks of memory files.
    """

    def __init__(
        self,
        process: ProcessFiles | None,
        memory_file: str = "",
        files: MemoryFiles = MEMORY_FILES,
    ) -> None:
        self._files = files
        self._process = process
        self._figures = ProcessFigures(process)
        self._memory_file = memory_file
        self.is_closed = False
        """Whether ``look`` was not allowed to see what the process has open."""

    @property
    def pid(self) -> int:
        """The process's number; 0: unknown."""
        return 0 if self._process is None else self._process.pid

    @property
    def user(self) -> int:
        """The user id of the process. The time of reading its figures counts against this user's
        share (``linux/reading_child.py``); -1: unknown."""
        return -1 if self._process is None else self._process.user

    @property
    def started(self) -> int:
        """When the process started, in clock ticks since boot; 0: unknown."""
        return 0 if self._process is None else self._process.started

    @property
    def tells_disk_reads(self) -> bool:
        """Whether ``disk_read_bytes`` can be known, now or later."""
        return self._figures.may_tell_reads

    @property
    def has_memory_file(self) -> bool:
        """Whether the VM's memory is a file whose blocks are counted."""
        return bool(self._memory_file)

    def held_bytes(self) -> int | None:
        """How much of the host's memory the VM's memory occupies: the blocks of its memory file,
        which a child looks up, else the resident set of the whole process."""
        if not self._memory_file:
            return self._figures.resident_bytes()
        if self._process is None:
            return None
        blocks = self._files.blocks(self._process, self._memory_file)
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
            ControlError: ``HANGS``: the process cannot be looked at now.
        """
        if self._process is None:
            return None
        found = await vmm_process.look(self._process, PINNING, ask)
        if found is None:
            # The VMM has ended, and another process may have its number by now.
            self._take(None)
            return None
        if self._figures.has_failed:
            self._take(await vmm_process.opened(self.pid, ask))
        resident_bytes = self._figures.resident_bytes()
        # A VMM has its socket open at least; a process that is ending has no memory any more.
        self.is_closed = not found.are_seen and resident_bytes is not None
        if found.found:
            return Fault.PINNED
        # The resident set does not count pages of hugetlbfs. Where the guest's memory is in such
        # pages, the resident set is only the VMM's own memory, which is less.
        if found.huge_page_bytes > (resident_bytes or 0):
            return Fault.HUGETLB
        return None

    def close(self) -> None:
        """Closes the process's files; all figures are unknown from now on."""
        self._take(None)

    def _take(self, process: ProcessFiles | None) -> None:
        same = process is not None and process.started == self.started
        self._figures.close()
        self._process = process if same else None
        self._figures = ProcessFigures(self._process)
