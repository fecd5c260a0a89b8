"""How much of the host's memory the files behind one VM's memory table occupy.

Runs in the controller. The kernel answers by itself: the files are shared memory, for which no
file system's server is asked. It takes 7 µs a file, and a user may have thousands.
"""

from collections.abc import Callable
from time import monotonic

from balloon_daemon.linux.memory import FileUse, memory_file_use
from balloon_daemon.vhost_user.memory_table import MemoryTable
from balloon_daemon.vhost_user.messages import RegionDescription


class MemoryFiles:
    """The files of one VM's memory table that can be freed.

    Args:
        memory: the table.
        charge: charges the seconds that looking at the files takes to the VM's user; returns
            whether they may be looked at now.
    """

    def __init__(self, memory: MemoryTable, charge: Callable[[float], bool]) -> None:
        self._memory = memory
        self._charge = charge
        self.table: tuple[tuple[RegionDescription, str], ...] = ()
        """The table that was seen last: each region, and why it is never freed."""
        self._uses: list[FileUse] = []

    def is_another_table(self) -> bool:
        """Whether the table has changed since the last call. The files of a changed table are
        looked at even if the user's VMs have taken too long to look at: what was found before is
        about other memory."""
        # Compare the regions without their descriptors: a front-end that sends the same table
        # again at each start of its guest sends other descriptors, but the table needs no new
        # events.
        table = tuple((r.description, r.never_freed) for r in self._memory.regions)
        if table == self.table:
            return False
        self.table = table
        self._look()
        return True

    def uses(self) -> list[FileUse]:
        """The files, each once: as they are now, or as they were found last where the user's VMs
        have taken too long to look at."""
        if self._charge(0.0):
            self._look()
        return self._uses

    def _look(self) -> None:
        began_s, uses = monotonic(), {}
        for region in self._memory.regions:
            if region.fd is not None and not region.never_freed:
                use = memory_file_use(region.fd.fileno())
                uses[use.identity] = use
        self._uses = list(uses.values())
        self._charge(monotonic() - began_s)
