"""The rows of ``make bench ARGS=compare``: each is measured for two builds by turns.

A build is driven by its command line and its socket alone, so that it may have been laid out in
any way; only the row ``buffer`` runs the revision's own benchmark.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial

from balloon_daemon.fake_guest.client import FakeGuestProcess
from balloon_daemon.units import GIB
from benchmarks import c_programs
from benchmarks.builds import Build
from benchmarks.fake_reclaim import floor_cpu, take
from benchmarks.figures import Goal, at_most
from benchmarks.guest_file import GuestFile
from benchmarks.processes import (
    ASKED_OPTIONS,
    ENVIRONMENT,
    Balloond,
    children_of,
    cpu_s,
    memory_kib,
)
from benchmarks.recovery import QUEUE_SIZE, resumed_ms
from benchmarks.ring_guest import RingGuest
from benchmarks.squeezed import SqueezedGuests
from benchmarks.tiny_guest import VM_MEM, connect
from benchmarks.traces import GUEST_BYTES, RECORDED, every_trace

Samples = dict[str, float]
"""What one build showed in one run, by the figure's name and unit: ``idle: CPU, %``."""
Pair = Sequence[Build]
Row = Callable[[Pair, int], Iterator[list[Samples]]]
"""(two builds, how many runs) -> for each run, what each build showed."""

SPEED = ("--speed", "20")
"""All sixteen levels within a second. A host that is polled is looked at as many times faster, so
a higher speed would measure the polls."""

VMS = 256
WINDOW_S = 8.0
SETTLE_S = 8.0
"""Children that close files or look at processes have ended by then, and imports are cold."""
IDLE_S = 20.0


def everybody(daemon: Balloond) -> list[int]:
    """The controller and all of its children: template, devices, keeper."""
    return [daemon.pid, *children_of(daemon.pid)]


def _cpu_s(daemon: Balloond) -> float:
    return sum(map(cpu_s, everybody(daemon)))


def _by_turns(measure: Callable[[Build], Samples]) -> Row:
    """Each run measures both builds, the first of them the second in the next run."""

    def row(pair: Pair, runs: int) -> Iterator[list[Samples]]:
        for build in pair:
            measure(build)  # Not counted: reads the files of both.
        for run in range(runs):
            found = [measure(build) for build in (pair[::-1] if run % 2 else pair)]
            yield found[::-1] if run % 2 else found

    return row


def _gib(build: Build) -> Samples:
    """A GiB from the fake guest, which reads its target and writes ``actual`` for each MiB."""
    order = sorted(RECORDED.glob("k61*fresh*.npz"))[0]
    with Balloond(SPEED, program=build.program) as daemon:
        arguments = ["--socket", str(daemon.socket), "--mem", "2G", "--touched", "1G"]
        with FakeGuestProcess([*arguments, "--order", str(order)]) as guest:
            device_s, controller_s = take(daemon, guest)
    trace = next(trace for trace in every_trace() if trace.fresh).first(GIB >> 20)
    file = GuestFile.in_memory(GUEST_BYTES)
    floor_s = floor_cpu(c_programs.floor(), file, trace)
    file.close()
    return {
        "a GiB taken: CPU of the controller, ms": controller_s * 1000,
        "a GiB taken: CPU of the device, ms": device_s * 1000,
        "a GiB taken: CPU of both to the C floor's, x": (controller_s + device_s) / floor_s,
    }


def _start(build: Build) -> Samples:
    with Balloond(program=build.program) as daemon:
        return {
            "start: command to listening, ms": daemon.start_s * 1000,
            "start: CPU of everything, ms": _cpu_s(daemon) * 1000,
        }


def _memory(build: Build) -> Samples:
    found = {}
    for count, name in ((1, "1 VM"), (16, "16 VMs")):
        with Balloond(["--vm-mem", VM_MEM], program=build.program) as daemon:
            guests = connect(count, daemon.socket)
            daemon.wait_devices(count)
            daemon.host.set_low()
            for guest in guests:
                while not guest.read_target_pages():
                    time.sleep(0.05)
            # Children that close files end by themselves after some seconds.
            time.sleep(SETTLE_S)
            pss = [memory_kib(pid)["Pss"] for pid in everybody(daemon)]
            found[f"PSS of everything, {name}, MiB"] = sum(pss) / 1024
            for guest in guests:
                guest.close()
    return found


def _killed(build: Build) -> Samples:
    file = GuestFile.in_memory(GUEST_BYTES)
    with Balloond([*ASKED_OPTIONS, "--keep-fds"], program=build.program) as daemon:
        guest = RingGuest(str(daemon.socket), file, QUEUE_SIZE)
        (device,) = daemon.wait_devices(1)
        took_ms = resumed_ms(daemon, guest, device, partial(daemon.replace, signal.SIGKILL))
        guest.close()
        daemon.wait_devices(0)
    file.close()
    return {"kill -9: to the next page removed, ms": took_ms}


def _buffer(build: Build) -> Samples:
    """The revision's own benchmark of its device, in this environment."""
    command = [sys.executable, "-m", "benchmarks", "cost"]
    environment = ENVIRONMENT | {"PYTHONPATH": str(build.source)}
    subprocess.run(
        command,
        cwd=build.source,
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    figures = json.loads((build.source / "build/bench.json").read_text())
    ending = ": cost of a buffer"
    return {
        f"a buffer, {figure['name'].removesuffix(ending)}, us": figure["value"]
        for figure in figures
        if figure["name"].endswith(ending)
    }


def _low(pair: Pair, runs: int) -> Iterator[list[Samples]]:
    """Both builds through the same seconds, each with its guests at their maximum."""
    with ExitStack() as stack:
        daemons = []
        for build in pair:
            options = ["--vm-mem", VM_MEM]
            daemon = stack.enter_context(Balloond(options, program=build.program))
            guests = SqueezedGuests(os.fspath(daemon.socket), VMS)
            stack.callback(guests.close)
            daemon.host.set_low()
            daemons.append((daemon, guests))
        for _daemon, guests in daemons:
            guests.wait_most()
        time.sleep(SETTLE_S)
        for shares in _windows([daemon for daemon, _ in daemons], runs, WINDOW_S):
            yield [
                {f"{VMS} VMs at their maximum: CPU of everything, %": share} for share in shares
            ]


def _idle(pair: Pair, runs: int) -> Iterator[list[Samples]]:
    """Both builds, by the host's own MemAvailable and PSI, through the same seconds."""
    with ExitStack() as stack:
        daemons = []
        for build in pair:
            options = ["--vm-mem", VM_MEM]
            daemon = stack.enter_context(Balloond(options, meminfo=True, program=build.program))
            for guest in connect(1, daemon.socket):
                stack.callback(guest.close)
            daemon.wait_devices(1)
            daemons.append(daemon)
        time.sleep(SETTLE_S)
        for shares in _windows(daemons, runs, IDLE_S):
            yield [{"idle, MemAvailable and PSI: CPU of everything, %": share} for share in shares]


def _windows(daemons: Sequence[Balloond], runs: int, window_s: float) -> Iterator[list[float]]:
    """How much of a processor each daemon with all of its children takes, window by window."""
    for _ in range(runs):
        before = [_cpu_s(daemon) for daemon in daemons]
        begun = time.monotonic()
        time.sleep(window_s)
        took_s = time.monotonic() - begun
        after = [_cpu_s(daemon) for daemon in daemons]
        yield [(now - then) / took_s * 100 for then, now in zip(before, after, strict=True)]


ROWS: dict[str, Row] = {
    "gib": _by_turns(_gib),
    "low": _low,
    "buffer": _by_turns(_buffer),
    "memory": _by_turns(_memory),
    "start": _by_turns(_start),
    "kill": _by_turns(_killed),
    "idle": _idle,
}

GOALS: dict[str, Goal] = {
    "a GiB taken: CPU of the controller": at_most(0.5),
    f"{VMS} VMs at their maximum: CPU of everything": at_most(0.3),
    "a buffer, device, frag": at_most(0.7),
    "PSS of everything": at_most(0.75),
    "start: command to listening": at_most(0.7),
    "kill -9: to the next page removed": at_most(0.7),
    "idle, MemAvailable and PSI: CPU of everything": at_most(0.5),
}
"""The most that a figure whose name begins so may be to the base's."""

ALONE: dict[str, Goal] = {"a GiB taken: CPU of both to the C floor's": at_most(1.2)}
"""Goals of this build's figure by itself."""


def goal_of(name: str, goals: dict[str, Goal]) -> Goal | None:
    """The goal of a figure, by the beginning of its name."""
    return next((goal for begin, goal in goals.items() if name.startswith(begin)), None)
