"""Replays a trace as it was recorded: the same events and random draws, by ``HostPolicy``. Pure.

The replay shows whether this version decides as the version that recorded the trace.
"""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from balloon_daemon.ctl.simulate.tally import Sums, Tally
from balloon_daemon.errors import StateError
from balloon_daemon.records.trace import Decided, Entry, Lost, Read, Trace
from balloon_daemon.sizing.decision import Reason
from balloon_daemon.sizing.host_events import (
    Added,
    Event,
    Found,
    HostStep,
    Looked,
    Moved,
    Removed,
    Restored,
    Woke,
)
from balloon_daemon.sizing.resumable import ResumablePolicy
from balloon_daemon.units import VmId


@dataclass(frozen=True, slots=True)
class Replayed:
    """The result of a replay.

    Attributes:
        sums: the sums over the recorded time.
        recorded: how many decisions were recorded.
        first_other: the line of the first step with other decisions than were recorded; None: all
            were the same.
        lost: how many entries are missing; after the first missing entry nothing is compared.
        midway: whether the recording began while balloond ran.
    """

    sums: Sums
    recorded: int
    first_other: int | None
    lost: int
    midway: bool


class _Player:
    """A policy that gets the recorded random draws and the recorded objections."""

    def __init__(self, trace: Trace) -> None:
        self._draws = deque[float]()
        self._objections: Mapping[VmId, Reason] = {}
        self.policy = ResumablePolicy(trace.header.settings, self._draw, self._objection)

    def play(self, entry: Entry, event: Event | Found) -> HostStep | None:
        if isinstance(event, Found):
            self.policy.resume(event, entry.at_s)
            return None
        self._draws = deque(entry.draws)
        self._objections = entry.objections
        if isinstance(event, Moved) and self.policy.guard(event.vm) is None:
            self.policy.note_actual(event.vm, event.balloon_bytes)
            return None
        return self.policy.step(event, entry.at_s)

    def _draw(self) -> float:
        # No draw was recorded here: this version draws more often than the recording version.
        return self._draws.popleft() if self._draws else 0.5

    def _objection(self, vm: VmId, _level: int) -> Reason | None:
        return self._objections.get(vm)


def replay(
    trace: Trace, note: Callable[[float, HostStep], None] = lambda at_s, step: None
) -> Replayed:
    """Replays a trace.

    Args:
        trace: the trace.
        note: called with the time and the result of each step.

    Raises:
        ConfigError: the trace has an event that makes no sense after those before it.
    """
    player, tally = _Player(trace), Tally()
    recorded = lost = 0
    first_other = None
    for index, entry in enumerate(trace.entries):
        tally.advance(entry.at_s)
        event = entry.event
        match event:
            case Lost(entries):
                lost += entries
                continue
            case Read(seen):
                tally.saw(seen)
                continue
            case Looked(seen) | Woke(seen):
                tally.saw(seen)
            case Moved() | Added() | Restored() | Found():
                tally.moved(event.vm, event.balloon_bytes)
            case Removed(vm):
                tally.moved(vm, 0)
        try:
            step = player.play(entry, event)
        except StateError as err:
            if lost:
                continue  # earlier entries are missing, so the decision may rightly differ
            raise trace.mistake(index, str(err)) from err
        recorded += len(entry.decided)
        if step is None:
            continue
        tally.stepped(step)
        note(entry.at_s, step)
        if first_other is None and not lost and _decided(step) != entry.decided:
            first_other = index + 2
    midway = any(isinstance(entry.event, Found) for entry in trace.entries)
    return Replayed(tally.sums, recorded, first_other, lost, midway)


def _decided(step: HostStep) -> tuple[Decided, ...]:
    return tuple(
        Decided(vm, decision.reason, decision.level, decision.target_bytes)
        for vm, decision, _ in step.decisions
    )
