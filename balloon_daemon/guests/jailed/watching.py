"""Reads one VM's figures again and again, for the controller.

Runs in the controller. The guest's statistics come from its device. The kernel tells how much the
VMM has read, and how much memory the VM's memory files occupy.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace

from balloon_daemon.guests.seam import Stats
from balloon_daemon.guests.vmm_files import FiguresToCome


class Watching:
    """Calls ``look`` at regular times while one VM is watched, and adds what its VMM has read from
    disks to its guest's statistics.

    Args:
        vmm: the figures of its VMM's process.
        vmm_pid: that process; 0: unknown.
        look: asks the guest for statistics, and reports how much host memory the VM occupies.
    """

    def __init__(self, vmm: FiguresToCome, vmm_pid: int, look: Callable[[], None]) -> None:
        self._vmm = vmm
        self.vmm_pid = vmm_pid or None
        """Its VMM's process; None: unknown."""
        self._look = look
        self._every_s: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Has a child open the files with the figures of the VMM's process. Call it only once the
        VM is attached, as any number of VMMs may connect and send nothing."""
        self._vmm.want()

    @property
    def knows_disk_reads(self) -> bool:
        """Whether the kernel tells how much the VMM has read from disks; False until a child has
        opened the files of the VMM's process."""
        return self._vmm.now.may_tell_reads

    def watch(self, every_s: float | None) -> None:
        """Calls ``look`` now, and from now on every so many seconds; None: no more."""
        if every_s == self._every_s:
            return
        self._every_s = every_s
        self._stop()
        if every_s is not None:
            self._due(every_s)

    def end(self) -> None:
        """Calls ``look`` no more."""
        self._stop()
        self._vmm.close()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def completed(self, stats: Stats) -> Stats:
        """The guest's statistics with what its VMM has read from its disks.

        Only while the VM is watched: otherwise nobody uses that figure, and a child reads it.
        """
        if self._every_s is None:
            return stats
        self._vmm.want()
        return replace(stats, disk_read_bytes=self._vmm.now.read_bytes())

    def _due(self, every_s: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(every_s, self._due, every_s)
        self._look()
