"""balloond's device and C programs in turn, on the same guest memory, touched anew before each."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from benchmarks.c_programs import CProgram
from benchmarks.processes import Balloond, cpu_s
from benchmarks.ring_guest import DEFLATEQ, INFLATEQ, RingGuest
from benchmarks.traces import Trace

Work = Mapping[str, tuple[CProgram, NDArray[np.generic]]]
"""C programs by name, each with what it is to free."""

DEVICE = "balloond"


@dataclass(slots=True)
class Runs:
    """Samples in the order in which they were taken; lists of one name each.

    Attributes:
        elapsed: seconds, by program.
        cpu: CPU seconds, by program.
        resident: pages of the trace that the host still held after balloond's worst run.
    """

    elapsed: dict[str, list[float]] = field(default_factory=dict)
    cpu: dict[str, list[float]] = field(default_factory=dict)
    resident: int = 0

    def add(self, name: str, elapsed_s: float, cpu_s: float) -> None:
        """Notes one run."""
        self.elapsed.setdefault(name, []).append(elapsed_s)
        self.cpu.setdefault(name, []).append(cpu_s)


def alternate(trace: Trace, guest: RingGuest, daemon: Balloond, work: Work, runs: int) -> Runs:
    """Takes a trace's pages from a guest, by balloond and by each program, ``runs`` times."""
    found = Runs()
    pages = trace.pages()
    (device,) = daemon.device_pids()
    for _ in range(runs):
        # Asked for, as of any guest: a device slows down what nobody wanted.
        daemon.ask_for_all()
        guest.file.touch()
        guest.fill(INFLATEQ, trace.buffers)
        before = cpu_s(device)
        elapsed = guest.drain(INFLATEQ)
        found.add(DEVICE, elapsed, cpu_s(device) - before)
        found.resident = max(found.resident, int(guest.file.resident()[pages].sum()))
        # Given back, or the device would know these pages as removed and leave them alone.
        daemon.ask_for_nothing()
        guest.fill(DEFLATEQ, trace.buffers)
        guest.drain(DEFLATEQ)
        guest.frontend.requests.serve_channel()
        for name, (program, what) in work.items():
            guest.file.touch()
            found.add(name, *program.run(guest.file, what))
    return found
