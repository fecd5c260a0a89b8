"""Turns a published event into its lines of a trace."""

from balloon_daemon.events import Event, Stepped, Surveyed, TraceBegun, VmFound
from balloon_daemon.records.trace import Decided, Entry, Read
from balloon_daemon.sizing.host_events import Looked


def entries_of(event: Event) -> list[Entry]:
    """The lines of an event in a trace; empty for an event of which a trace has no line."""
    match event:
        case Stepped():
            decided = tuple(
                Decided(vm, decision.reason, decision.level, decision.target_bytes)
                for vm, decision, _ in event.decisions
            )
            objections = dict(event.objections)
            return [Entry(event.at_s, event.event, event.draws, objections, decided)]
        case Surveyed(at_s, seen):
            return [Entry(at_s, Read(seen))]
        case TraceBegun(at_s, _, seen):
            # ``Looked``, not ``Read``: a policy that replays the trace has to get this reading, to
            # know at once how near to low memory the host is.
            return [Entry(at_s, Looked(seen))]
        case VmFound(at_s, _, found, reports):
            return [Entry(at_s, found), *(Entry(at_s, report) for report in reports)]
        case _:
            return []
