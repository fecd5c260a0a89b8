"""A real Linux guest of 2 GiB in QEMU (TCG), ballooned by balloond or by QEMU's own device."""

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from balloon_daemon.units import GIB, MIB
from benchmarks.processes import Balloond
from tests.vm.guest import Guest
from tests.vm.images import Images
from tests.vm.qemu import QemuConfig

MEMORY_MIB = 2048
TARGET_BYTES = GIB
"""What balloond takes at most from a guest of 2 GiB, and what QEMU's device is told to."""

SUITE = "bookworm"
DEADLINE_S = 120.0
SPEED = "1000"
"""All levels up in 16 ms, all down in 0.6 s: neither is what is waited for."""

REACHED = ("target-reached", "reached")
"""What the log calls it, and what the logs of older builds call it."""


class RealVm:
    """A booted guest.

    Args:
        images: where QEMU and the guest's kernel are.
        own_device: QEMU's virtio-balloon-pci instead of balloond.
        page_reporting: let the guest report free memory; balloond's only.
        program: another balloond's command; by default this checkout's.
        kernel_options: of the guest's kernel, as they are typed.
    """

    def __init__(
        self,
        images: Images,
        *,
        own_device: bool,
        page_reporting: bool = False,
        program: Sequence[str | Path] = (),
        kernel_options: str = "",
    ) -> None:
        self._undo = ExitStack()
        self.daemon: Balloond | None = None
        logs = Path(self._undo.enter_context(tempfile.TemporaryDirectory()))
        with ExitStack() as failed:
            failed.callback(self._undo.close)
            if own_device:
                config = QemuConfig(SUITE, memory_mib=MEMORY_MIB, qemu_balloon=True)
            else:
                options = ["--vm-mem", f"{MEMORY_MIB}M", "--speed", SPEED]
                options += [] if page_reporting else ["--no-page-reporting"]
                daemon = Balloond(options, woken=not program, program=program)
                self.daemon = self._undo.enter_context(daemon)
                config = QemuConfig(
                    SUITE,
                    memory_mib=MEMORY_MIB,
                    balloond_socket=daemon.socket,
                    kernel_options=kernel_options,
                )
            self.guest = Guest(images, config, logs)
            self._undo.callback(self.guest.stop)
            failed.pop_all()
        self._memory = self._memory_path()

    def close(self) -> None:
        """Ends guest and daemon."""
        self._undo.close()

    def blocks_bytes(self) -> int:
        """What the host holds for the guest."""
        return os.stat(self._memory).st_blocks * 512

    def cpu_s(self) -> float:
        """CPU seconds of QEMU, and of balloond and its device, so far."""
        pids = [self.guest.qemu.pid]
        if self.daemon is not None:
            pids += [self.daemon.pid, *self.daemon.device_pids()]
        return sum(map(all_threads_cpu_s, pids))

    def free_memory(self, mib: int) -> None:
        """Lets the guest use memory for a file and delete it: free in the guest, held here."""
        self.guest.run(f"dd if=/dev/zero of=/tmp/file bs=1M count={mib} && rm /tmp/file")

    def take(self) -> None:
        """Wants the balloon at its target."""
        if self.daemon is None:
            left = MEMORY_MIB * MIB - TARGET_BYTES
            self.guest.qemu.monitor.execute("balloon", value=left)
        else:
            self.daemon.host.set_low()

    def give_back(self) -> None:
        """Wants the balloon empty."""
        if self.daemon is None:
            self.guest.qemu.monitor.execute("balloon", value=MEMORY_MIB * MIB)
        else:
            self.daemon.host.set_plenty()

    def has_reached(self, balloon_bytes: int) -> bool:
        """Whether the driver says that the balloon is so large."""
        if self.daemon is None:
            answer = self.guest.qemu.monitor.execute("query-balloon")
            return bool(answer["actual"] == MEMORY_MIB * MIB - balloon_bytes)
        reached = [r for r in self.daemon.records() if r.get("event") in REACHED]
        return bool(reached) and reached[-1]["actual_bytes"] == balloon_bytes

    def _memory_path(self) -> str:
        fds = Path(f"/proc/{self.guest.qemu.pid}/fd")
        for link in fds.iterdir():
            if os.readlink(link).startswith("/memfd:memory-backend-memfd"):
                return str(link)
        raise RuntimeError("QEMU has no memfd for its guest's memory")


def wait(condition: Callable[[], bool], what: str, every_s: float = 0.01) -> float:
    """Waits for a condition; returns when it was seen, by ``time.perf_counter``.

    Raises:
        TimeoutError: it did not come.
    """
    deadline = time.perf_counter() + DEADLINE_S
    while not condition():
        if time.perf_counter() > deadline:
            raise TimeoutError(f"not in {DEADLINE_S:g} s: {what}")
        time.sleep(every_s)
    return time.perf_counter()


def all_threads_cpu_s(pid: int) -> float:
    """CPU seconds of all of a process's present threads."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9
