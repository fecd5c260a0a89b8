"""Driven: VMs that balloond drives by their QEMU's monitor, which a script plays.

Counted is the whole way, from the host's low-memory signal to the ``balloon`` command as a monitor
has read it. All monitors share one thread of this process, so the last command waits for those
before it to be read, too.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from balloon_daemon.units import GIB
from benchmarks.figures import Figure, at_most, of_count, of_percentile, of_samples
from benchmarks.processes import Balloond, cpu_s, memory_kib
from benchmarks.tiny_guest import raise_file_limit
from tests.harness.scripted_monitor import (
    Call,
    Misdeed,
    ScriptedMonitor,
    ScriptedVm,
    monitors_in_a_thread,
)
from tests.harness.waiting import wait_until

COUNTS = (1, 16, 256)
RUNS = 5
"""Each with a daemon and monitors of its own."""
SIGNALS = 3
"""In each run."""
BETWEEN_S = 1.1
"""The policy listens again one second after a step, and up to 50 ms more."""

SETTLE_S = 2.0
"""After its start a daemon has other things to do, which cost the first signal 70 ms."""

HONEST = 32
MISDEEDS = (Misdeed.HANG, Misdeed.GARBAGE, Misdeed.HALF_MESSAGE)
EACH = 4
"""Monitors for each misdeed: in each second one misbehaves, and is not met again for a while."""
STEPS = 10
"""Signals to one daemon. A balloon has sixteen levels, and takes two at a signal that is slow."""
PAIRS = 8
SPEED = 5.0
"""The policy's timers run so much faster, or 160 signals would take three minutes."""

LAST_GOAL, CPU_GOAL, NEIGHBOUR_GOAL, RSS_GOAL = map(at_most, (150, 1.2, 1.2, 6))
MIB = 1024
"""KiB in one."""


def figures() -> Iterator[Figure]:
    """Measures; yields as it goes."""
    raise_file_limit()
    costs = {}
    for count in COUNTS:
        last_ms: list[float] = []
        cpu_us: list[float] = []
        for _ in range(RUNS):
            with _fleet(count) as fleet:
                for _ in range(SIGNALS):
                    before = cpu_s(fleet.daemon.pid)
                    last_ms.append(max(fleet.signal()))
                    time.sleep(BETWEEN_S)
                    cpu_us.append((cpu_s(fleet.daemon.pid) - before) / count * 1e6)
        costs[count] = median(cpu_us)
        name = f"{count} QMP VMs" if count > 1 else "1 QMP VM"
        goal = LAST_GOAL if count == max(COUNTS) else None
        yield of_samples(f"{name}: signal to the last balloon command", "ms", last_ms, goal)
        yield of_samples(f"{name}: CPU per VM and signal", "µs", cpu_us)
    ratio = costs[256] / costs[16]
    yield of_count("256 QMP VMs: CPU per VM and signal, to 16 VMs'", "×", ratio, CPU_GOAL)
    yield from _neighbours()
    yield from _memory()


def _neighbours() -> Iterator[Figure]:
    """How much later honest VMs hear while others misbehave; both by turns."""
    heard_ms: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(PAIRS):
        for disturbed in (False, True):
            with _fleet(HONEST, EACH * len(MISDEEDS), SPEED) as fleet:
                heard_ms[disturbed] += _steps(fleet, disturbed=disturbed)
    p99 = {}
    for disturbed, samples in heard_ms.items():
        how = "beside 3 that misbehave each second" if disturbed else "beside honest ones"
        name = f"{HONEST} QMP VMs {how}: signal to balloon command, p99"
        figure = of_percentile(name, "ms", samples, 99)
        p99[disturbed] = figure.value or 0.0
        yield figure
    name = f"{HONEST} QMP VMs: p99 beside 3 that misbehave each second, to without"
    yield of_count(name, "×", p99[True] / p99[False], NEIGHBOUR_GOAL)


def _steps(fleet: "_Fleet", *, disturbed: bool) -> list[float]:
    """Milliseconds from each of some signals to each honest VM's command."""
    heard_ms: list[float] = []
    villains = iter(fleet.monitors[HONEST:])
    misbehaved_at = 0.0
    for _ in range(STEPS):
        if disturbed and time.monotonic() - misbehaved_at > 1:
            misbehaved_at = time.monotonic()
            for misdeed, monitor in zip(MISDEEDS, villains, strict=False):
                fleet.call(partial(monitor.misbehave, misdeed))
        heard_ms += fleet.signal()
        time.sleep(BETWEEN_S / SPEED)
    return heard_ms


def _memory() -> Iterator[Figure]:
    resident: dict[int, list[float]] = {0: [], 16: []}
    for _ in range(RUNS):
        for count, samples in resident.items():
            with _fleet(count) as fleet:
                if count:
                    fleet.signal()
                samples.append(memory_kib(fleet.daemon.pid)["Rss"] / MIB)
    more = [some - none for some, none in zip(resident[16], resident[0], strict=True)]
    yield of_samples("16 QMP VMs: controller's RSS, beside that with none", "MiB", more, RSS_GOAL)


class _Fleet:
    """A balloond, and VMs that it drives by QMP; the first ``count`` are waited for."""

    def __init__(
        self, daemon: Balloond, monitors: Sequence[ScriptedMonitor], count: int, call: Call
    ) -> None:
        self.daemon = daemon
        self.monitors = monitors
        self.call = call
        self._vms = [monitor.vm for monitor in monitors[:count]]

    def signal(self) -> list[float]:
        """Signals low memory; returns the ms until each VM's monitor had its command."""
        before = [len(vm.targets) for vm in self._vms]
        begun = time.monotonic()
        self.daemon.host.set_low()

        def all_told() -> bool:
            return all(
                len(vm.targets) > count for vm, count in zip(self._vms, before, strict=True)
            )

        wait_until(all_told, what="each VM has its balloon command")
        self.daemon.host.set_enough()
        return [
            (vm.targets[count][1] - begun) * 1000
            for vm, count in zip(self._vms, before, strict=True)
        ]


@contextmanager
def _fleet(count: int, others: int = 0, speed: float = 1.0) -> Iterator[_Fleet]:
    """So many VMs whose commands are waited for, and others."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="balloond-bench-")))
        monitors = [
            ScriptedMonitor(directory / f"{number}.qmp", _vm()) for number in range(count + others)
        ]
        call = stack.enter_context(monitors_in_a_thread(monitors))
        config = directory / "balloond.toml"
        config.write_text(
            "".join(f'[vm.vm{n}]\nqmp = "{vm.path}"\n' for n, vm in enumerate(monitors))
        )
        options = ["--config", str(config), "--speed", f"{speed:g}"]
        daemon = stack.enter_context(Balloond(options if monitors else options[2:], woken=True))
        wait_until(
            lambda: daemon.log_path.read_bytes().count(b'"vm-driven"') == len(monitors),
            what="all VMs are driven",
        )
        time.sleep(SETTLE_S)
        yield _Fleet(daemon, monitors, count, call)


def _vm() -> ScriptedVm:
    """A VM of 2 GiB that is not in need, with a disk that it reads nothing from."""
    vm = ScriptedVm(ram_bytes=2 * GIB, actual=2 * GIB, reports=True)
    vm.send_stats(total_memory=2 * GIB, free_memory=GIB, available_memory=3 * GIB // 2)
    return vm
