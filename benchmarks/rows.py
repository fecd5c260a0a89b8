"""The rows of ``make bench ARGS=compare``: each is measured for two builds in one run.

Only the row ``buffer`` runs a revision's own benchmark, by the command ``python -m benchmarks``.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial

from balloon_daemon.fake_guest.client import FakeGuestProcess
from balloon_daemon.units import GIB
from benchmarks import c_programs
from benchmarks.builds import Build
from benchmarks.fake_reclaim import floor_cpu, take
from benchmarks.figures import Goal, at_least, at_most
from benchmarks.guest_file import GuestFile
from benchmarks.idle_rows import idle, woken
from benchmarks.memory_row import memory
from benchmarks.processes import ASKED_OPTIONS, ENVIRONMENT, Balloond, cpu_s
from benchmarks.real_rows import init_on_free, long_lived
from benchmarks.recovery import QUEUE_SIZE, resumed_ms
from benchmarks.ring_guest import RingGuest
from benchmarks.squeezed import SqueezedGuests
from benchmarks.tiny_guest import VM_MEM
from benchmarks.trace_rows import traces
from benchmarks.traces import GUEST_BYTES, RECORDED, every_trace
from benchmarks.turns import Pair, Row, Samples, all_cpu_s, by_turns, shares, wait_still

SPEED = ("--speed", "20")
"""All sixteen levels within a second. A host that is polled is looked at as many times faster, so
a higher speed would measure the polls."""

VMS, KEPT_VMS = 256, 64
"""How many VMs are at their maximum in the row ``low``, and how many in the row ``low-kept``. With
a store there are fewer, as each VM takes several descriptors of both daemons and their keepers;
the ratio of the two builds depends on what each VM's rechecks cost, not on the number of VMs."""
LOW_S = 5.0


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
            "start: CPU of the controller, ms": daemon.start_cpu_s * 1000,
            "start: CPU of all, ms": sum(all_cpu_s(daemon).values()) * 1000,
        }


def _killed(build: Build) -> Samples:
    file = GuestFile.in_memory(GUEST_BYTES)
    with Balloond([*ASKED_OPTIONS, "--keep-fds"], program=build.program) as daemon:
        guest = RingGuest(str(daemon.socket), file, QUEUE_SIZE)
        (device,) = daemon.wait_devices(1)
        used_s: list[float] = []
        took_ms = resumed_ms(
            daemon,
            guest,
            device,
            partial(daemon.replace, signal.SIGKILL),
            lambda: used_s.append(cpu_s(daemon.pid)),
        )
        guest.close()
        daemon.wait_devices(0)
    file.close()
    return {
        "kill -9: to the next page removed, ms": took_ms,
        "kill -9: CPU of the controller until then, ms": used_s[0] * 1000,
    }


def _buffer(build: Build) -> Samples:
    """The revision's own benchmark of its device, in this environment: medians of seven."""
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


def _low(
    name: str, vms: int, options: Sequence[str], pair: Pair, runs: int
) -> Iterator[list[Samples]]:
    """Both builds through the same seconds, each with its guests at their maximum."""
    with ExitStack() as stack:
        daemons = []
        for build in pair:
            daemon = Balloond(["--vm-mem", VM_MEM, *options], program=build.program)
            stack.enter_context(daemon)
            guests = SqueezedGuests(os.fspath(daemon.socket), vms)
            stack.callback(guests.close)
            daemon.host.set_low()
            daemons.append((daemon, guests))
        for _daemon, guests in daemons:
            guests.wait_most()
        wait_still(served := [daemon for daemon, _ in daemons])
        for found in shares(served, runs, LOW_S):
            yield [{f"{name}: CPU of all, %": each} for each in found]


LOW = f"{VMS} VMs at their maximum"
LOW_KEPT = f"{KEPT_VMS} VMs at their maximum with a store (--keep-fds)"

ROWS: dict[str, Row] = {
    "gib": by_turns(_gib),
    "traces": traces,
    "buffer": by_turns(_buffer, most=3, warm_up=False),
    "low": partial(_low, LOW, VMS, ()),
    "low-kept": partial(_low, LOW_KEPT, KEPT_VMS, ["--keep-fds"]),
    "memory": by_turns(memory, warm_up=False),
    "start": by_turns(_start, times=3),
    "kill": by_turns(_killed, times=2),
    "idle": idle,
    "woken": woken,
    "real": long_lived,
    "init-on-free": init_on_free,
}

GOALS: dict[str, Goal] = {
    "a GiB taken: CPU of the controller": at_most(0.5),
    f"{LOW}: CPU of all": at_most(0.3),
    f"{LOW_KEPT}: CPU of all": at_most(0.3),
    "a buffer, device, frag": at_most(0.7),
    "a buffer beyond C, frag": at_most(0.7),
    "PSS of all": at_most(0.75),
    "start: command to listening": at_most(0.7),
    "start: CPU of the controller": at_most(0.7),
    "kill -9: ": at_most(0.7),
    "idle, MemAvailable and PSI: CPU of all": at_most(0.5),
    "real guest, 1 GiB: host CPU": at_most(0.92),
}
"""The most that a figure whose name begins so may be to the base's."""

ALONE: dict[str, Goal] = {
    "a GiB taken: CPU of both to the C floor's": at_most(1.2),
    "speed to the C floor": at_least(0.95),
    "init_on_free=1: a deleted file is back": at_least(95),
}
"""Goals of this build's figure by itself."""


def goal_of(name: str, goals: dict[str, Goal]) -> Goal | None:
    """The goal of a figure, by the beginning of its name."""
    return next((goal for begin, goal in goals.items() if name.startswith(begin)), None)
