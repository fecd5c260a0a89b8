"""A model of a recorded host under other settings or another sizing policy. Pure.

The model is simple, so that a few sentences say what it assumes:

    - What programs on the host and in the guests want is as it was recorded. A MiB more in the
      balloons than was recorded is a MiB more that the host has available, and a MiB less that the
      guest has.
    - A balloon follows its target at ``guest.RATE_BYTES_S``, as long as its guest has memory
      available.
    - The host is read whenever it was read when the trace was recorded, whenever a balloon moves,
      and at the policy's own deadlines. Statistics come as often as the policy asks for them.

The model cannot know what a guest would read from its disks or its swap for lack of memory that
was taken only in the model: these counters stay the recorded ones.
"""

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from balloon_daemon.ctl.simulate.contenders import host_policy
from balloon_daemon.ctl.simulate.guest import Guest
from balloon_daemon.ctl.simulate.policies import MakePolicy
from balloon_daemon.ctl.simulate.samples import Samples
from balloon_daemon.ctl.simulate.scores import Fared, Scorer, Scores
from balloon_daemon.ctl.simulate.tally import Sums, Tally
from balloon_daemon.errors import ConfigError, StateError
from balloon_daemon.records.trace import Lost, Read, Recorded, Trace
from balloon_daemon.sizing.balloon_policy import PolicySettings
from balloon_daemon.sizing.decision import Reading
from balloon_daemon.sizing.host_events import (
    Added,
    Event,
    Found,
    Halted,
    Looked,
    Measured,
    Moved,
    Ran,
    Removed,
    Restored,
    Sampled,
    Seen,
    SettingsChanged,
    Woke,
)
from balloon_daemon.sizing.terms import Terms
from balloon_daemon.sizing.vm_settings import VmSettings
from balloon_daemon.units import MIB, VmId

DAY_S = 86_400.0

MOST_GAP_S, MOST_S = DAY_S, 60 * DAY_S
"""The longest time between two entries, and the longest trace, that the model accepts, as it takes
at least a step for each second. balloond reads the host at least once a minute, and so fills the
largest trace within 53 days."""


@dataclass(frozen=True, slots=True)
class Changes:
    """The settings that differ from the recorded ones.

    Attributes:
        settings: the numbers of ChromeOS's balloon policy.
        margin_mib: the margin; None: the recorded one.
        of_vm: turns a VM's recorded settings into the changed ones.
    """

    settings: PolicySettings
    margin_mib: int | None = None
    of_vm: Callable[[VmSettings], VmSettings] = lambda settings: settings


class World:
    """The model of a trace's host, and a policy that governs it.

    Args:
        trace: the recorded trace.
        changes: the changed settings.
        draw: gives the policy's random draws, uniform numbers of [0, 1).
        make: makes the policy.
        host_mib: all memory of the host, in MiB, for policies that go by it.
    """

    def __init__(
        self,
        trace: Trace,
        changes: Changes,
        draw: Callable[[], float],
        make: MakePolicy = host_policy,
        host_mib: int = 0,
    ) -> None:
        self._trace = trace
        self._changes = changes
        self._policy = make(changes.settings, draw, host_mib)
        self._guests: dict[VmId, Guest] = {}
        self._samples = defaultdict[VmId, Samples](Samples)
        self._seen: Seen = None
        self._wake_at_s = math.inf
        self._listens = False
        self._tally = Tally()
        self._scorer = Scorer()
        self._at_s: float | None = None
        self._host: tuple[int, int] | None = None
        """In MiB, how much was available at the last reading, perhaps below 0, and the margin;
        None: unknown."""

    @property
    def scores(self) -> Scores:
        """The policy's scores up to now."""
        return self._scorer.scores

    def run(self) -> Sums:
        """Lets the recorded time pass.

        Raises:
            ConfigError: the trace has an event that makes no sense after those before it, or is of
                too long a time.
        """
        _check_times(self._trace)
        entries = self._trace.entries
        for entry in entries:
            if isinstance(entry.event, Sampled):
                self._samples[entry.event.vm].add(entry.event.figures)
        for index, entry in enumerate(entries):
            self._pass_time_until(entry.at_s)
            self._advance(entry.at_s)
            try:
                self._take(entry.event, entry.at_s)
            except StateError as err:
                raise self._trace.mistake(index, str(err)) from err
            if isinstance(entry.event, Halted):
                break
        return self._tally.sums

    # --- what was recorded --------------------------------------------------------------------

    def _take(self, event: Recorded, at_s: float) -> None:
        match event:
            case Looked(seen) | Woke(seen) | Read(seen):
                self._seen = seen
                self._look(at_s)
            case Added() | Restored() | Found():
                self._add(event, at_s)
            case SettingsChanged(vm, settings):
                changed = self._changes.of_vm(settings)
                self._guests[vm].careful = Terms(changed).is_careful
                self._step(SettingsChanged(vm, changed), at_s)
            case Sampled() | Lost():
                pass
            case Moved() | Measured() | Ran() | Removed():
                guest = self._guests.get(event.vm)
                if guest is None:
                    raise StateError(f"{event.vm} has not been added")
                self._take_of_guest(event, guest, at_s)
            case _:
                self._step(event, at_s)

    def _take_of_guest(
        self, event: Moved | Measured | Ran | Removed, guest: Guest, at_s: float
    ) -> None:
        match event:
            case Moved(_, balloon_bytes):
                guest.recorded_bytes = balloon_bytes
            case Measured(vm, held_bytes):
                if guest.careful:
                    held_bytes = max(0, held_bytes - guest.more_bytes(at_s))
                    self._step(Measured(vm, held_bytes), at_s)
            case Ran():
                if guest.careful:
                    self._step(event, at_s)
            case Removed(vm):
                del self._guests[vm]
                self._tally.moved(vm, 0)
                self._step(event, at_s)

    def _add(self, event: Added | Restored | Found, at_s: float) -> None:
        vm, balloon_bytes, samples = event.vm, event.balloon_bytes, self._samples[event.vm]
        terms = Terms(
            self._changes.of_vm(event.terms.settings),
            # A trace has no statistics of a VM that had the profile seed when it was recorded.
            event.terms.sends_stats and bool(samples),
            event.terms.deflates_on_oom,
        )
        self._guests[vm] = Guest(
            careful=terms.is_careful,
            vm_mem_bytes=event.vm_mem_bytes,
            balloon_bytes=balloon_bytes,
            at_s=at_s,
            samples=samples,
        )
        self._tally.moved(vm, balloon_bytes)
        # Add even a VM that was recorded as restored or found: its stored level and deadlines
        # came from the recorded settings, not from these.
        self._step(Added(vm, event.vm_mem_bytes, balloon_bytes, terms), at_s)

    # --- time ---------------------------------------------------------------------------------

    def _pass_time_until(self, until_s: float) -> None:
        while True:
            guests = self._guests.values()
            times = [min(guest.report_at_s, guest.sample_at_s) for guest in guests]
            at_s = min([self._wake_at_s, *times])
            if at_s > until_s:
                return
            self._advance(at_s)
            for vm, guest in list(self._guests.items()):
                self._hear(vm, guest, at_s)
            if self._wake_at_s <= at_s:
                self._step(Woke(self._read(at_s)), at_s)

    def _advance(self, at_s: float) -> None:
        """Lets time pass up to ``at_s``, and counts the last reading and the last sizes for it."""
        self._tally.advance(at_s)
        since_s = at_s if self._at_s is None else self._at_s
        self._at_s = max(at_s, since_s)
        seconds = self._at_s - since_s
        if not seconds:
            return
        if self._host is not None:
            available_mib, margin_mib = self._host
            self._scorer.host(available_mib, available_mib, margin_mib, seconds)
        for vm, guest in self._guests.items():
            lacks = guest.lacks_memory(since_s)
            balloon = guest.balloon_bytes(since_s)
            fared = Fared(balloon, float(lacks), lacks, guest.is_short(since_s))
            self._scorer.guest(vm, fared, self._at_s, seconds)

    def _hear(self, vm: VmId, guest: Guest, at_s: float) -> None:
        """Gives the policy a guest's reports that are due at this time."""
        if guest.report_at_s <= at_s:
            balloon_bytes = guest.report(at_s)
            self._tally.moved(vm, balloon_bytes)
            if guest.careful:
                self._step(Moved(vm, balloon_bytes), at_s)
            else:
                self._policy.note_actual(vm, balloon_bytes)
            self._look(at_s)
        if guest.sample_at_s <= at_s:
            figures = guest.sample(at_s)
            if figures is not None:
                self._step(Sampled(vm, figures), at_s)

    def _look(self, at_s: float) -> None:
        now = self._read(at_s)
        if self._listens:
            self._step(Looked(now), at_s)

    def _read(self, at_s: float) -> Seen:
        """Reads the host in the model."""
        now, self._host = self._seen, None
        if isinstance(now, Reading):
            more = sum(guest.more_bytes(at_s) for guest in self._guests.values())
            available_mib = now.available_mib + more // MIB
            margin_mib = self._changes.margin_mib
            now = now._replace(
                available_mib=max(0, available_mib),
                margin_mib=now.margin_mib if margin_mib is None else margin_mib,
            )
            self._host = (available_mib, now.margin_mib)
        self._tally.saw(now)
        return now

    def _step(self, event: Event, at_s: float) -> None:
        step = self._policy.step(event, at_s)
        self._tally.stepped(step)
        self._wake_at_s = math.inf if step.wake_at_s is None else step.wake_at_s
        self._listens = step.listen
        for vm, target_bytes in step.targets:
            guest = self._guests[vm]
            self._scorer.told(vm, target_bytes, guest.balloon_bytes(at_s), at_s)
            guest.set_target(target_bytes, at_s)
        for vm, every_s in step.watches:
            self._guests[vm].watch(every_s, at_s)


def _check_times(trace: Trace) -> None:
    """Raises ConfigError: a trace is longer, or has a longer gap, than the model accepts."""
    for index, (before, entry) in enumerate(pairwise(trace.entries), 1):
        if entry.at_s - before.at_s > MOST_GAP_S:
            days = (entry.at_s - before.at_s) / DAY_S
            why = f"nothing is recorded for {days:,.1f} days before this line, and a model has at "
            raise trace.mistake(index, why + "most one day without; cut the trace here")
    passed_s = trace.entries[-1].at_s - trace.entries[0].at_s if trace.entries else 0.0
    if passed_s > MOST_S:
        why = f"it is of {passed_s / DAY_S:,.0f} days, and a model of {MOST_S / DAY_S:g} at most"
        raise ConfigError(f"{trace.name}: {why}; cut it")
