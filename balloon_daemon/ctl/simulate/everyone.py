"""Scores every sizing policy on the host of one recorded trace."""

from collections.abc import Callable, Iterable

from balloon_daemon.ctl.simulate.contenders import contenders
from balloon_daemon.ctl.simulate.overrides import changes_of
from balloon_daemon.ctl.simulate.scores import Scores
from balloon_daemon.ctl.simulate.world import World
from balloon_daemon.records.trace import Read, Trace
from balloon_daemon.sizing.decision import Reading
from balloon_daemon.sizing.host_events import Added, Found, Looked, Restored, Woke
from balloon_daemon.units import MIB


def judge_trace(
    trace: Trace,
    assignments: Iterable[str],
    draws: Callable[[], Callable[[], float]],
    host_mib: int,
) -> dict[str, Scores]:
    """Scores each policy on a model of a trace's host (``World``).

    Args:
        trace: the trace.
        assignments: other settings for all VMs, each NAME=VALUE.
        draws: makes a source of random draws, the same one for each policy.
        host_mib: all memory of the host.

    Raises:
        ConfigError: a setting is wrong, or the trace has an event that makes no sense.
    """
    assignments = list(assignments)
    scores = {}
    for each in contenders():
        changes = changes_of(trace.header.settings, assignments, each.profile)
        world = World(trace, changes, draws(), each.make, host_mib)
        world.run()
        scores[each.name] = world.scores
    return scores


def least_host_mib(trace: Trace) -> int:
    """The least memory that the host can have had: what was available, and the sizes of all VMs
    added up. A trace does not have the host's size."""
    sizes = {
        entry.event.vm: entry.event.vm_mem_bytes
        for entry in trace.entries
        if isinstance(entry.event, Added | Restored | Found)
    }
    readings = (
        entry.event.seen
        for entry in trace.entries
        if isinstance(entry.event, Looked | Woke | Read)
    )
    available = (seen.available_mib for seen in readings if isinstance(seen, Reading))
    return max(available, default=0) + sum(sizes.values()) // MIB
