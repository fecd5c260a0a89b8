"""Which VMMs' processes are driven, and by which kind of control. Pure.

One VM may be named twice, as libvirt's domain and by a monitor of its QEMU's: two drivers with two
targets would fight over one balloon. The process tells, as it has one VM only. Two sockets of one
kind are not told apart so, as one process may serve several VMs' sockets.
"""

from balloon_daemon.config.vms import Kind


class Claims:
    """The processes whose VMs are driven."""

    def __init__(self) -> None:
        self._kinds: dict[int, Kind] = {}
        self._counts: dict[int, int] = {}

    def other(self, pid: int, kind: Kind) -> Kind | None:
        """The other kind by which this process's VM is driven already; None: by none."""
        taken = self._kinds.get(pid)
        return None if taken is kind else taken

    def claim(self, pid: int, kind: Kind) -> None:
        """Notes that a VM is driven; ``pid`` 0: nobody knows of which process."""
        if pid:
            self._kinds[pid] = kind
            self._counts[pid] = self._counts.get(pid, 0) + 1

    def release(self, pid: int) -> None:
        """Notes that a VM is driven no more."""
        if pid:
            self._counts[pid] -= 1
            if not self._counts[pid]:
                del self._counts[pid], self._kinds[pid]
