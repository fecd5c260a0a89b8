"""Two builds by turns: ``python -m benchmarks.two_builds BEFORE AFTER [GROUP...]``.

BEFORE and AFTER are checkouts. Each run measures both, the first of them the second in the next
run: a pair meets the same weather, so the ratio counts, and an absolute value says little. A
ratio is that of the medians.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from rich.console import Console

from balloon_daemon.linux.asked_child import NAME as LOOKER
from balloon_daemon.linux.closing_child import NAME as CLOSER
from benchmarks.figures import Figure, at_most, of_samples
from benchmarks.processes import (
    Balloond,
    DaemonError,
    children_of,
    command_of,
    cpu_s,
    memory_kib,
    wakeups,
)
from benchmarks.table import show
from benchmarks.tiny_guest import VM_MEM, TinyGuest, connect, raise_file_limit, wait_told

KIB_IN_MIB = 1024
SETTLE_S = 8.0
"""Children that close files have ended by then."""
IDLE_S = 30.0
SIGNALS = 3
BETWEEN_S = 1.1
"""The policy listens again one second after a step, and up to 50 ms more."""
VMS = 256

Samples = dict[str, float]
"""What one build showed in one run, by the figure's name."""

GOALS = {
    "start: command to listening, ms": 1.05,
    "start: CPU of all processes, ms": 1.05,
    "1 VM: controller RSS, MiB": 1.05,
    "1 VM, --keep-fds: controller RSS, MiB": 0.85,
    "1 VM: device USS, MiB": 1.05,
    "idle, polled: CPU, % of a core": 1.05,
    "idle, woken: CPU, % of a core": 1.05,
    "idle, MemAvailable and PSI: CPU, % of a core": 1.05,
    f"{VMS} VMs: signal to the last VM, ms": 0.7,
}
"""The most that each may be to BEFORE; what is not named is only to be known."""


def _family(daemon: Balloond) -> list[int]:
    """The controller, its template and its devices, without children that only close files."""
    return [daemon.pid, daemon.template_pid(), *daemon.device_pids()]


def _start(checkout: Path) -> Samples:
    with Balloond(checkout=checkout) as daemon:
        # The template may have no name yet.
        spent = sum(map(cpu_s, [daemon.pid, *children_of(daemon.pid)]))
        return {
            "start: command to listening, ms": daemon.start_s * 1000,
            "start: CPU of the controller, ms": daemon.start_cpu_s * 1000,
            "start: CPU of all processes, ms": spent * 1000,
        }


def _memory(checkout: Path) -> Samples:
    found = {}
    for way, options in (("1 VM", []), ("1 VM, --keep-fds", ["--keep-fds"])):
        with Balloond(["--vm-mem", VM_MEM, *options], woken=True, checkout=checkout) as daemon:
            guests = connect(1, daemon.socket)
            devices = daemon.wait_devices(1)
            _signal(daemon, guests)
            controller = memory_kib(daemon.pid)
            for name in ("Rss", "Uss"):
                size = controller[name] / KIB_IN_MIB
                found[f"{way}: controller {name.upper()}, MiB"] = size
            found[f"{way}: device USS, MiB"] = memory_kib(devices[0])["Uss"] / KIB_IN_MIB
            found[f"{way}: PSS of all processes, MiB"] = _pss_mib(daemon)
            for guest in guests:
                guest.close()
    return found


def _pss_mib(daemon: Balloond) -> float:
    """The memory of the controller, its template, its devices and a keeper, once the children that
    close files and look names up have ended, which share pages with the controller."""
    deadline = time.monotonic() + SETTLE_S
    while any(command_of(pid) in (CLOSER, LOOKER, "") for pid in children_of(daemon.pid)):
        if time.monotonic() > deadline:
            raise DaemonError("a child still closes files or looks names up")
        time.sleep(0.1)
    everyone = [daemon.pid, *children_of(daemon.pid)]
    return sum(memory_kib(pid)["Pss"] for pid in everyone) / KIB_IN_MIB


_WAYS = {
    "polled": {},
    "woken": {"woken": True},
    "MemAvailable and PSI": {"meminfo": True},
}


def _idle(checkouts: list[Path]) -> list[Samples]:
    """Both builds idle through the same seconds."""
    found: list[Samples] = [{} for _ in checkouts]
    with ExitStack() as stack:
        daemons = []
        for place, checkout in enumerate(checkouts):
            for way, arguments in _WAYS.items():
                daemon = stack.enter_context(
                    Balloond(["--vm-mem", VM_MEM], checkout=checkout, **arguments)
                )
                for guest in connect(1, daemon.socket):
                    stack.callback(guest.close)
                daemon.wait_devices(1)
                daemons.append((place, way, daemon))
        time.sleep(SETTLE_S)
        watched = [(place, way, _family(daemon)) for place, way, daemon in daemons]
        before = [(sum(map(cpu_s, pids)), sum(map(wakeups, pids))) for _, _, pids in watched]
        begun = time.monotonic()
        time.sleep(IDLE_S)
        took = time.monotonic() - begun
        for (place, way, pids), (cpu, woken) in zip(watched, before, strict=True):
            share = (sum(map(cpu_s, pids)) - cpu) / took * 100
            found[place][f"idle, {way}: CPU, % of a core"] = share
            rate = (sum(map(wakeups, pids)) - woken) / took
            found[place][f"idle, {way}: wake-ups, 1/s"] = rate
    return found


def _signal(daemon: Balloond, guests: list[TinyGuest]) -> tuple[float, float]:
    processes = [daemon.pid, *daemon.device_pids()]
    before = sum(map(cpu_s, processes))
    begun = time.perf_counter()
    daemon.host.set_low()
    told = wait_told(guests)
    daemon.host.set_enough()
    time.sleep(BETWEEN_S)
    return max(told) - begun, sum(map(cpu_s, processes)) - before


def _signals(checkout: Path) -> Samples:
    with Balloond(["--vm-mem", VM_MEM], woken=True, checkout=checkout) as daemon:
        guests = connect(VMS, daemon.socket)
        daemon.wait_devices(VMS)
        found = [_signal(daemon, guests) for _ in range(SIGNALS)]
        rss = memory_kib(daemon.pid)["Rss"] / KIB_IN_MIB
        for guest in guests:
            guest.close()
    return {
        f"{VMS} VMs: signal to the last VM, ms": median(last for last, _ in found) * 1000,
        f"{VMS} VMs: CPU of a signal, ms": median(cpu for _, cpu in found) * 1000,
        f"{VMS} VMs: controller RSS, MiB": rss,
    }


def _each(measure: Callable[[Path], Samples]) -> Callable[[list[Path]], list[Samples]]:
    return lambda checkouts: [measure(checkout) for checkout in checkouts]


GROUPS: dict[str, Callable[[list[Path]], list[Samples]]] = {
    "start": _each(_start),
    "memory": _each(_memory),
    "idle": _idle,
    "signal": _each(_signals),
}


def figures(group: str, before: Path, after: Path, runs: int) -> Iterator[Figure]:
    """Measures one group."""
    measure = GROUPS[group]
    olds, news = [], []
    measure([before, after])  # Compiles, and warms what is read.
    for run in range(runs):
        if run % 2:
            new, old = measure([after, before])
        else:
            old, new = measure([before, after])
        olds.append(old)
        news.append(new)
    for name in olds[0]:
        was, now = [each[name] for each in olds], [each[name] for each in news]
        title, unit = name.rsplit(", ", 1)
        yield of_samples(f"{title}: before", unit, was)
        yield of_samples(f"{title}: after", unit, now)
        goal = at_most(GOALS[name]) if name in GOALS else None
        if median(was):
            ratio = median(now) / median(was)
            pairs = [one / other for one, other in zip(now, was, strict=True) if other]
            yield Figure(f"{title}: ratio", "×", ratio, min(pairs), max(pairs), len(pairs), goal)


def main() -> int:
    """Measures; 1 where a goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.two_builds", description=__doc__)
    parser.add_argument("before", type=Path, help="a checkout")
    parser.add_argument("after", type=Path, help="another one")
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=", ".join(GROUPS))
    parser.add_argument("--runs", type=int, default=5, metavar="N")
    args = parser.parse_args()
    raise_file_limit()
    found: list[Figure] = []
    for group in args.groups or GROUPS:
        found += figures(group, args.before.resolve(), args.after.resolve(), args.runs)
    show(found, Console())
    return any(figure.is_met is False for figure in found)


if __name__ == "__main__":
    sys.exit(main())
