"""The rows of ``make bench ARGS=compare`` in which nothing is to be done; one VM for each daemon.

All daemons of a row go through the same seconds.
"""

import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from balloon_daemon.host.low_memory import PRESSURE_FILE
from balloon_daemon.host.memory_alarm import PressureAlarm
from balloon_daemon.units import MIB
from benchmarks.builds import DIRECTORY
from benchmarks.processes import Balloond
from benchmarks.tiny_guest import VM_MEM, connect
from benchmarks.turns import Pair, Samples, shares, wait_still
from tests.harness.memory_cgroup import memory_cgroup

IDLE_S = 10.0
WOKEN_S = 6.0

READERS = 3
FILE_BYTES = 64 * MIB
ROOM_BYTES = 24 * MIB
"""What the readers of the file may have in memory: the kernel reclaims all the time."""


class NotWokenError(Exception):
    """A PSI trigger had no event in a window."""


def idle(pair: Pair, runs: int) -> Iterator[list[Samples]]:
    """The host has plenty: its figures in files, and its own MemAvailable with PSI."""
    with ExitStack() as stack:
        polled = [stack.enter_context(_daemon(build.program, meminfo=False)) for build in pair]
        kernels = [stack.enter_context(_daemon(build.program, meminfo=True)) for build in pair]
        wait_still([*polled, *kernels])
        for found in shares([*polled, *kernels], runs, IDLE_S):
            yield [
                {
                    "idle, polled: CPU of all, %": found[place],
                    "idle, MemAvailable and PSI: CPU of all, %": found[2 + place],
                }
                for place in (0, 1)
            ]


def woken(pair: Pair, runs: int) -> Iterator[list[Samples]]:
    """Processes stall on memory in a cgroup of their own, so PSI wakes both daemons for nothing.

    Raises:
        PermissionError: no cgroup can be made here.
        NotWokenError: they did not stall enough.
    """
    with ExitStack() as stack:
        daemons = [stack.enter_context(_daemon(build.program, meminfo=True)) for build in pair]
        wait_still(daemons)
        stack.enter_context(_stalls())
        # A trigger like theirs: how often they wake says nothing, as a wake-up puts off a poll.
        alarm = PressureAlarm(PRESSURE_FILE)
        stack.callback(alarm.close)
        for found in shares(daemons, runs, WOKEN_S):
            if not alarm.acknowledge():
                raise NotWokenError(alarm.problem or f"no PSI event in {WOKEN_S:g} s")
            yield [{"woken by PSI: CPU of all, %": share} for share in found]


@contextmanager
def _daemon(program: Sequence[str], *, meminfo: bool) -> Iterator[Balloond]:
    with Balloond(["--vm-mem", VM_MEM], meminfo=meminfo, program=program) as daemon:
        (guest,) = connect(1, daemon.socket)
        daemon.wait_devices(1)
        yield daemon
        guest.close()


@contextmanager
def _stalls() -> Iterator[None]:
    """Has processes read a file that is larger than the memory that they may have, again and
    again: some of them waits for memory for a third of the time."""
    with tempfile.NamedTemporaryFile(dir=DIRECTORY) as file:
        for _ in range(FILE_BYTES // MIB):
            file.write(b"\1" * MIB)
        file.flush()
        os.fsync(file.fileno())
        # What is in memory already is this process's, and is not counted as the reader's.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with memory_cgroup(ROOM_BYTES) as group:
            script = f"while :; do cat '{file.name}' >/dev/null; done"
            command = [*group.launcher(), "sh", "-c", script]
            readers = [subprocess.Popen(command) for _ in range(READERS)]
            try:
                yield
            finally:
                for reader in readers:
                    reader.kill()
                    reader.wait()
