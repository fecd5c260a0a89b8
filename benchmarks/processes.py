"""balloond as an operator starts it, and what the kernel says of a process."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from balloon_daemon.device.forker import NAME

ROOT = Path(__file__).parents[1]
PROGRAM = "balloon_daemon"
ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if name not in ("NOTIFY_SOCKET", "PYTHONDONTWRITEBYTECODE")
}
"""Not a service of anybody's, or a store for descriptors would be part of what is measured; and
with its bytecode kept, as where it is installed."""

ASKED_OPTIONS = ("--vm-mem", "2G", "--speed", "1000")
"""All levels up in 16 ms, all down in 0.6 s."""

ASKED_BYTES = 1 << 30
"""The most that is asked of such a VM."""

_IN_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Where the host's figures are, as the real ones are in sysfs: no disk is part of a reaction."""

PLENTY_MIB = 1 << 20
"""More memory than any host has."""

START_S = 30.0
STOP_S = 30.0


class DaemonError(Exception):
    """balloond did not do what the benchmark needs; carries the end of its log."""


class LowMemory:
    """A host's low-memory figures in files, whole at every moment.

    Args:
        directory: gets ``low_mem``, with ``available`` and ``margin``, and the FIFO ``device``.
        available_mib: what the host has at first.
    """

    MARGIN_MIB = 400

    def __init__(self, directory: Path, available_mib: int = PLENTY_MIB) -> None:
        self.path = directory / "low_mem"
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "margin").write_text(f"{self.MARGIN_MIB}\n")
        self.set_available(available_mib)
        # Open at both ends for good: a FIFO without a writer is a device that hangs up.
        os.mkfifo(directory / "device")
        self._device = os.open(directory / "device", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def close(self) -> None:
        """The device is gone."""
        os.close(self._device)

    def set_available(self, mib: int) -> None:
        """Writes what the host has, in MiB."""
        new = self.path / "available.new"
        new.write_text(f"{mib}\n")
        os.replace(new, self.path / "available")

    def set_low(self) -> None:
        """The host has nothing left; the device says so to whoever waits for it."""
        self.set_available(0)
        os.write(self._device, b"!")

    def set_enough(self) -> None:
        """Not low, and not enough for any balloon to shrink."""
        self._silence()
        self.set_available(self.MARGIN_MIB)

    def set_plenty(self) -> None:
        """More than any balloon policy could wait for."""
        self._silence()
        self.set_available(PLENTY_MIB)

    def _silence(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._device, 4096)


class Balloond:
    """A running balloond with a socket and a low-memory directory of its own.

    Args:
        options: further options, as they are typed.
        woken: wait for the low-memory device instead of polling every second; not with a
            ``program``, as it takes modules of this checkout.
        meminfo: go by this host's own MemAvailable.
        available_mib: what the host has at first, where neither is so.
        program: another balloond's command; by default this checkout's.

    Raises:
        DaemonError: it ended, or did not listen in time.
    """

    def __init__(
        self,
        options: Sequence[str] = (),
        *,
        woken: bool = False,
        meminfo: bool = False,
        available_mib: int = PLENTY_MIB,
        program: Sequence[str | Path] = (),
    ) -> None:
        self._run_dir = tempfile.TemporaryDirectory(prefix="balloond-bench-", dir=_IN_MEMORY)
        self.directory = Path(self._run_dir.name)
        self.socket = self.directory / "vhost.sock"
        self.log_path = self.directory / "log"
        self.host = LowMemory(self.directory, available_mib)
        self._command = list(map(str, program)) or [sys.executable, "-m"]
        if not program:
            here = ["benchmarks.balloond_here", str(self.directory)]
            self._command += here if woken else [PROGRAM]
        self._command += ["--socket", str(self.socket), "--log", "json"]
        if not woken and not meminfo:
            self._command += ["--low-mem-dir", str(self.host.path)]
        self._command += options
        begun = time.perf_counter()
        self._process = self._start()
        try:
            self._wait_listening()
        except BaseException:
            self.kill()
            raise
        self.start_s = time.perf_counter() - begun
        """From starting the process to its word that it listens."""
        self.start_cpu_s = cpu_s(self.pid)
        """CPU time that it took for that."""

    def __enter__(self) -> "Balloond":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def replace(self, number: int) -> None:
        """Ends it with this signal and starts another one at once, without waiting for that."""
        self._process.send_signal(number)
        self._process.wait(STOP_S)
        self._process = self._start()

    @property
    def pid(self) -> int:
        """The controller's process id."""
        return self._process.pid

    def device_pids(self) -> list[int]:
        """The devices' process ids, ascending."""
        return [pid for pid in children_of(self.pid) if command_of(pid).startswith("balloon-")]

    def template_pid(self) -> int:
        """The process id of what forks the devices."""
        (pid,) = (pid for pid in children_of(self.pid) if command_of(pid) == NAME)
        return pid

    def wait_devices(self, count: int) -> list[int]:
        """Waits until so many devices are jailed and ready; returns their process ids."""
        deadline = time.monotonic() + START_S
        while True:
            pids = self.device_pids()
            if len(pids) == count and all(is_filtered(pid) for pid in pids):
                return pids
            if time.monotonic() > deadline:
                raise DaemonError(f"{len(pids)} of {count} devices run\n{self.last_lines()}")
            time.sleep(0.005)

    def wait_target(self, target_bytes: int) -> None:
        """Waits until the policy has decided on this balloon size."""
        deadline = time.monotonic() + START_S
        while self.target_bytes() != target_bytes:
            if time.monotonic() > deadline:
                raise DaemonError(f"no target of {target_bytes} bytes\n{self.last_lines()}")
            time.sleep(0.002)

    def ask_for_all(self) -> None:
        """Has the policy take all that it may of VMs of ``ASKED_OPTIONS``."""
        self.host.set_low()
        self.wait_target(ASKED_BYTES)
        self.host.set_enough()

    def ask_for_nothing(self) -> None:
        """Has the policy give all of it back."""
        self.host.set_plenty()
        self.wait_target(0)

    def target_bytes(self) -> int:
        """The balloon size that the policy decided on last; 0 before it did."""
        targets = [r["target_bytes"] for r in self.records() if "target_bytes" in r]
        return int(targets[-1]) if targets else 0

    def records(self) -> list[dict[str, Any]]:
        """Its log so far."""
        *lines, _half = self.log_path.read_text().split("\n")
        return [json.loads(line) for line in lines]

    def last_lines(self) -> str:
        """The end of its log."""
        return "\n".join(self.log_path.read_text().splitlines()[-5:])

    def kill(self) -> None:
        """Ends it as a service manager does, harder if it does not hear."""
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.host.close()
        self._run_dir.cleanup()

    def _start(self) -> "subprocess.Popen[bytes]":
        with self.log_path.open("a") as log:
            return subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=ENVIRONMENT,
                # First of all the places that ``-m`` looks into.
                cwd=ROOT,
            )

    def _wait_listening(self) -> None:
        deadline = time.monotonic() + START_S
        while b'"listening"' not in self.log_path.read_bytes():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise DaemonError(f"balloond does not listen\n{self.last_lines()}")
            time.sleep(0.0005)


def children_of(pid: int) -> list[int]:
    """The process ids of a process's children, ascending."""
    return sorted(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def command_of(pid: int) -> str:
    """A process's name; empty where it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except FileNotFoundError:
        return ""


def is_filtered(pid: int) -> bool:
    """Whether a process is under a seccomp filter (proc(5), Seccomp: 2)."""
    return "\nSeccomp:\t2\n" in Path(f"/proc/{pid}/status").read_text()


def cpu_s(pid: int) -> float:
    """Seconds of CPU that a process of one thread has used, by the scheduler's own count."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def wakeups(pid: int) -> int:
    """How often a process of one thread has waited and been woken."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("voluntary_ctxt_switches:"))
    return int(line.split()[1])


def memory_kib(pid: int) -> dict[str, int]:
    """A process's Rss, Pss and Uss in KiB; Uss is what is in no other process.

    Raises:
        PermissionError: it is another user's, or not dumpable, and we are not root.
    """
    figures: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        figures[name] = int(rest.split()[0])
    uss = figures["Private_Clean"] + figures["Private_Dirty"]
    return {"Rss": figures["Rss"], "Pss": figures["Pss"], "Uss": uss}
