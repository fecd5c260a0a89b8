"""Turns a trace into samples and events of the host and of VMs, from which a picture is drawn.
Pure."""

from collections import defaultdict
from collections.abc import Iterable

from balloon_daemon.ctl.charts.past import Kind, Mark, Past, Row
from balloon_daemon.ctl.simulate.replay import replay
from balloon_daemon.records.trace import Entry, Lost, Read, Trace
from balloon_daemon.sizing.decision import (
    Balance,
    Contested,
    Finding,
    InNeed,
    Missing,
    Reading,
    Reason,
    Stalled,
)
from balloon_daemon.sizing.host_events import (
    Added,
    Found,
    Halted,
    HostStep,
    Looked,
    Moved,
    Removed,
    Resized,
    Restored,
    Seen,
    Woke,
)
from balloon_daemon.units import MIB, VmId, format_size

GAP_S = 20.0
"""A gap in the picture: balloond reads the host's memory each 5 s, so in this long a time without
a reading it did not run."""


def course_of(trace: Trace) -> Past:
    """The samples and events of a trace, with times in seconds since the epoch.

    Raises:
        ConfigError: it has an event that makes no sense after those before it.
    """
    course = _Course(trace)
    for entry in trace.entries:
        if isinstance(entry.event, Halted):
            break  # balloond ends and empties all balloons: the policy does not decide that.
        course.take(entry)
    replay(trace, course.stepped)
    return course.past()


class _Course:
    def __init__(self, trace: Trace) -> None:
        self._begins_s = trace.header.began_s - trace.entries[0].at_s
        self._ends_s = 0.0
        self._host: list[list[Row]] = [[]]
        self._vms: defaultdict[str, list[list[Row]]] = defaultdict(list)
        self._now: dict[VmId, Row] = {}
        self._levels: dict[VmId, int] = {}
        self._marks: list[Mark] = []

    def take(self, entry: Entry) -> None:
        self._ends_s = at_s = self._epoch(entry.at_s)
        event = entry.event
        match event:
            case Looked(seen) | Woke(seen) | Read(seen):
                self._saw(seen, at_s)
            case Added() | Restored() | Found():
                target = event.target_bytes if isinstance(event, Found) else 0
                row = {"memory": event.vm_mem_bytes, "balloon": 0, "target": target}
                self._now[event.vm] = row | {"balloon": event.balloon_bytes}
                if isinstance(event, Found | Restored):
                    self._levels[event.vm] = event.state.level
                self._vms[event.vm.name].append([])
            case Moved(vm, balloon_bytes) if vm in self._now:
                self._now[vm]["balloon"] = balloon_bytes
            case Resized(vm, vm_mem_bytes) if vm in self._now:
                self._now[vm]["memory"] = vm_mem_bytes
            case Lost():
                self._host.append([])
        for vm, reason, level, target_bytes in entry.decided:
            if vm not in self._now:
                continue
            before = self._levels.get(vm, 0)
            self._levels[vm] = level
            self._now[vm]["target"] = target_bytes
            if level != before and reason is not Reason.ADOPTED:
                kind = Kind.GROWS if level > before else Kind.SHRINKS
                self._marks.append(Mark(at_s, vm.name, kind, target_bytes, reason.value))
        changed = {decided.vm for decided in entry.decided}
        if isinstance(event, Added | Restored | Found | Moved | Resized):
            changed.add(event.vm)
        for vm in changed & self._now.keys():
            self._vms[vm.name][-1].append({"at_s": at_s, **self._now[vm]})
        if isinstance(event, Removed):
            self._end(event.vm, at_s)

    def stepped(self, at_s: float, step: HostStep) -> None:
        """Adds a mark for each finding of a step of the replay."""
        for vm, finding in step.findings:
            mark = Mark(self._epoch(at_s), vm.name, Kind.FINDING, None, _said(finding))
            self._marks.append(mark)

    def past(self) -> Past:
        for vm in list(self._now):
            self._end(vm, self._ends_s)
        self._marks.sort(key=lambda mark: mark.at_s)
        vms = {name: [run for run in runs if run] for name, runs in self._vms.items()}
        return Past([run for run in self._host if run], vms, self._marks)

    def _saw(self, seen: Seen, at_s: float) -> None:
        run = self._host[-1]
        if run and (at_s - run[-1]["at_s"] > GAP_S or not isinstance(seen, Reading)):
            self._host.append(run := [])
        if isinstance(seen, Reading):
            # As floats: matplotlib refuses integers of 2**63 and more, which a trace may have.
            available, margin = float(seen.available_mib * MIB), float(seen.margin_mib * MIB)
            run.append({"at_s": at_s, "available": available, "margin": margin})

    def _end(self, vm: VmId, at_s: float) -> None:
        row = self._now.pop(vm, None)
        if row is not None:
            self._vms[vm.name][-1].append({"at_s": at_s, **row})

    def _epoch(self, at_s: float) -> float:
        return at_s + self._begins_s


def _said(finding: Finding) -> str:
    match finding:
        case InNeed(signs, balloon_bytes):
            words: Iterable[str] = sorted(sign.value for sign in signs)
            return f"in need ({', '.join(words)}): {format_size(balloon_bytes)} go back"
        case Stalled(target_bytes, balloon_bytes):
            sizes = f"{format_size(balloon_bytes)} of {format_size(target_bytes)}"
            return f"stalled: gives no more than {sizes}"
        case Contested():
            return "contested: somebody else sets its balloon"
        case Balance(Missing.NOTHING):
            return "the host has its balloon's memory now"
        case Balance(_, missing_bytes):
            return f"the host has not got {format_size(missing_bytes)} of its balloon"
