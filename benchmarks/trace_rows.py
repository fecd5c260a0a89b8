"""The row ``traces`` of ``make bench ARGS=compare``: recorded fragmented guests.

Each build has a guest of its own. For each trace the device takes its pages twice, and C makes the
same calls after it: once while the host has memory behind them, once while it has none. What a
device takes beyond C for pages that are holes is its own work: ring, PFNs, sorting and merging,
and what a call costs more from the jailed interpreter.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from benchmarks import c_programs
from benchmarks.builds import Build
from benchmarks.guest_file import GuestFile
from benchmarks.processes import ASKED_OPTIONS, Balloond, cpu_s
from benchmarks.ring_guest import DEFLATEQ, INFLATEQ, RingGuest, area_bytes
from benchmarks.traces import GUEST_BYTES, Trace, every_trace
from benchmarks.turns import Pair, Samples, places

QUEUE_SIZE = 256
"""Buffers of a trace that are used, a quarter of a GiB."""


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU seconds of a device, and of C for the same calls."""

    device_s: float
    floor_s: float


def traces(pair: Pair, runs: int) -> Iterator[list[Samples]]:
    """Measures; yields each run."""
    fragmented = [trace.first(QUEUE_SIZE) for trace in every_trace() if is_fragmented(trace)]
    floor = c_programs.floor()
    with ExitStack() as stack:
        served = [stack.enter_context(Served(build, floor)) for build in pair]
        for run in range(runs):
            found: list[Samples] = [{}, {}]
            for trace in fragmented:
                for place in places(run):
                    found[place] |= shown(trace, *served[place].costs(trace))
            yield found


def is_fragmented(trace: Trace) -> bool:
    """Whether a trace was recorded from a guest whose memory was in small pieces."""
    return trace.name.startswith("frag")


def shown(trace: Trace, held: Cost, holes: Cost) -> Samples:
    """The figures of one trace.

    Args:
        trace: the trace.
        held: what its pages cost.
        holes: what they cost while they are holes.
    """
    own_s = (holes.device_s - holes.floor_s) / len(trace.buffers)
    return {
        f"speed to the C floor, {trace.name}, x": held.floor_s / held.device_s,
        f"a buffer beyond C, {trace.name}: CPU of the device, us": own_s * 1e6,
    }


class Served:
    """A guest, and a balloond that takes its pages.

    Args:
        build: whose balloond.
        floor: the C program.
    """

    def __init__(self, build: Build, floor: c_programs.CProgram) -> None:
        self._floor = floor
        with ExitStack() as failed:
            self._file = GuestFile.in_memory(GUEST_BYTES + area_bytes(QUEUE_SIZE))
            failed.callback(self._file.close)
            daemon = Balloond(ASKED_OPTIONS, program=build.program)
            self._daemon = failed.enter_context(daemon)
            self._guest = RingGuest(str(self._daemon.socket), self._file, QUEUE_SIZE)
            failed.callback(self._guest.close)
            (self._device,) = self._daemon.wait_devices(1)
            self._undo = failed.pop_all()

    def __enter__(self) -> "Served":
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def costs(self, trace: Trace) -> tuple[Cost, Cost]:
        """What a trace's pages cost, first as memory, then as holes."""
        self._file.touch()
        device_s = self._take(trace)
        self._file.touch()
        held = Cost(device_s, self._floor.run(self._file, trace.ranges())[1])
        return held, Cost(self._take(trace), self._floor.run(self._file, trace.ranges())[1])

    def _take(self, trace: Trace) -> float:
        """CPU seconds in which the device takes all pages; the guest has them back afterwards."""
        # Asked for, as of any guest: a device slows down what nobody wanted.
        self._daemon.ask_for_all()
        self._guest.fill(INFLATEQ, trace.buffers)
        before = cpu_s(self._device)
        self._guest.drain(INFLATEQ)
        took_s = cpu_s(self._device) - before
        # Or the device would know these pages as removed and leave them alone.
        self._daemon.ask_for_nothing()
        self._guest.fill(DEFLATEQ, trace.buffers)
        self._guest.drain(DEFLATEQ)
        self._guest.frontend.requests.serve_channel()
        return took_s
