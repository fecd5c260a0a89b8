"""Runs the model with the targets that a recorded guest got, to compare the two. Pure."""

from dataclasses import replace
from typing import NamedTuple

from balloon_daemon.ctl.simulate.live_guest import LiveGuest
from balloon_daemon.ctl.simulate.load import Kind
from balloon_daemon.ctl.simulate.recording import Recording
from balloon_daemon.sizing.need import Figures

TICK_S = 0.25

LEAD_S = 6.0
"""How long the model runs before the recording's first line, so that by then it has sent
statistics, as the recorded guest had."""


class Moment(NamedTuple):
    """The model at the time of one line of a recording; sizes in MiB.

    Attributes:
        balloon_mib: its balloon.
        free_mib: its free memory.
        available_mib: what it has available.
        cache_mib: its page cache.
        read_mib: what it has read from its disk, since the first line.
        swapped_in: pages read from swap, since the first line.
        stall: the share of its time that it loses.
        figures: the statistics that balloond would have by then; None: none.
    """

    balloon_mib: float
    free_mib: float
    available_mib: float
    cache_mib: float
    read_mib: float
    swapped_in: float
    stall: float
    figures: Figures | None


def rerun(recording: Recording, kind: Kind) -> list[Moment]:
    """Runs a guest of the model with the recorded targets.

    Returns:
        The model at each of the recorded times.
    """
    guest, told, moments = LiveGuest(_earlier(kind)), 0.0, list[Moment]()
    now_s, before = recording.times[0] - LEAD_S, None
    for time, target in zip(recording.times, recording["target_mib"], strict=True):
        # A line shows the target of the second before it.
        if target != told:
            told = target
            guest.set_target(target)
        while now_s < time - 1e-6:
            seconds = min(TICK_S, time - now_s)
            now_s += seconds
            guest.advance(now_s, seconds)
        memory, programs = guest.memory, guest.programs
        before = programs.read_mib if before is None else before
        moments.append(
            Moment(
                memory.balloon_mib,
                memory.free_mib,
                memory.available_mib,
                memory.set_mib + memory.cold_mib,
                programs.read_mib - before,
                programs.swapped_in,
                guest.stall,
                guest.figures(now_s),
            )
        )
    return moments


def _earlier(kind: Kind) -> Kind:
    """The same kind as it was ``LEAD_S`` earlier: without the page cache that its stream has read
    since then."""
    load = kind.load
    if not load.stream_rate or load.stream_at_s > 0:
        return kind
    streamed = min(load.stream_rate * LEAD_S, load.cache_mib - load.set_mib)
    return kind._replace(load=replace(load, cache_mib=load.cache_mib - streamed))
