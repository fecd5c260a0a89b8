"""What a daemon's log and a trace tell of decisions, in the same form."""

from balloon_daemon.records.trace import Trace
from tests.harness.daemon import Daemon


def decided(daemon: Daemon) -> list[tuple[str, str, int, int]]:
    """VM, reason, level and target of each decision in the log."""
    return [
        (record["vm"], record["reason"], record["balloon_level"], record["target_bytes"])
        for record in daemon.records()
        if record["event"] == "decided"
    ]


def traced(trace: Trace) -> list[tuple[str, str, int, int]]:
    """The same of a trace."""
    return [
        (each.vm.name, each.reason.value, each.level, each.target_bytes)
        for entry in trace.entries
        for each in entry.decided
    ]
