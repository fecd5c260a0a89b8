"""A host of simulated guests: its memory, its own programs' demand, and its VMs. Pure."""

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from balloon_daemon.ctl.simulate.contenders import Contender
from balloon_daemon.ctl.simulate.live_guest import LiveGuest
from balloon_daemon.ctl.simulate.load import Kind
from balloon_daemon.ctl.simulate.scores import Fared, Scorer, Scores
from balloon_daemon.sizing.balloon_policy import PolicySettings
from balloon_daemon.sizing.decision import Reading
from balloon_daemon.sizing.host_events import (
    Added,
    Event,
    Looked,
    Measured,
    Moved,
    Sampled,
    Woke,
)
from balloon_daemon.sizing.terms import Terms
from balloon_daemon.sizing.vm_settings import VmSettings
from balloon_daemon.units import MIB, PAGE_SIZE, VmId

TICK_S = 0.25
"""The longest time that the model lets pass at once. With 0.1 s memory is low for 3 % less time
under the profile seed on the standard hosts, and its guests lose the same time."""

POLL_S = 1.0
"""How often the policy gets a reading of the host's memory, and balloons' sizes are reported."""

MEASURED_S = 5.0
"""How often a driver measures what its VM holds of the host's memory."""

Course = tuple[tuple[float, float], ...]
"""A figure that changes with time: points (seconds, MiB), with straight lines between them."""


@dataclass(frozen=True, slots=True)
class ScenarioVm:
    """One VM of a scenario.

    Attributes:
        name: its name.
        kind: its size, its kernel and its programs; the load's times are on the scenario's clock.
        untouched: the share of its free memory that it has never used.
        floor_mib: the memory that the balloon always leaves the guest; None: what the profile
            leaves it.
        priority: memory is taken from VMs of a higher priority later.
    """

    name: str
    kind: Kind
    untouched: float = 0.0
    floor_mib: int | None = None
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Scenario:
    """A host, its demand, and its VMs.

    Attributes:
        name: its name.
        about: what happens, in one line.
        host_mib: all memory of the host.
        margin_mib: with less available than this, memory is low.
        available_mib: how much is available at the start.
        demand: how much more memory the host's own programs want than at the start.
        seconds: how long it lasts.
        vms: its VMs.
        busy: the name of the VM that ``with_guest`` replaces.
        event_s: when the guest that replaces it begins its stream and its growth, if these do not
            begin with its load.
    """

    name: str
    about: str
    host_mib: int
    margin_mib: int
    available_mib: int
    demand: Course
    seconds: float
    vms: tuple[ScenarioVm, ...]
    busy: str
    event_s: float = 60.0

    def with_guest(self, kind: Kind) -> "Scenario":
        """The same host with a guest of this kind in the place of its busy one."""
        kind = kind._replace(load=kind.load.begins(self.event_s))
        vms = (
            replace(vm, kind=kind.of_size(vm.kind.size_mib)) if vm.name == self.busy else vm
            for vm in self.vms
        )
        return replace(self, vms=tuple(vms))


class Moment(NamedTuple):
    """A host at one moment.

    Attributes:
        at_s: the moment, in the scenario's time.
        available_mib: how much was available; below 0: by how much the wanted memory exceeds the
            host's.
        balloons_mib: the sizes of all balloons, added up.
        stall: the shares of their time that guests lost, added up.
    """

    at_s: float
    available_mib: float
    balloons_mib: float
    stall: float


class Outcome(NamedTuple):
    """The result of a run.

    Attributes:
        scores: the policy's scores.
        course: the host's state at each second.
    """

    scores: Scores
    course: list[Moment]


def run(
    scenario: Scenario,
    contender: Contender,
    draw: Callable[[], float],
    settings: PolicySettings | None = None,
) -> Outcome:
    """Lets a policy govern a scenario's host.

    Args:
        scenario: the host.
        contender: the policy.
        draw: gives the policy's random draws, uniform numbers of [0, 1).
        settings: the numbers of ChromeOS's balloon policy; None: the defaults.
    """
    return _Run(scenario, contender, draw, settings or PolicySettings()).run()


def at(course: Course, at_s: float) -> float:
    """A course's figure at a time: before the course's first point the first point's figure, after
    its last point the last one's."""
    after = bisect_right(course, at_s, key=lambda point: point[0])
    if after == 0:
        return course[0][1]
    if after == len(course):
        return course[-1][1]
    (from_s, first), (to_s, second) = course[after - 1], course[after]
    return first + (second - first) * (at_s - from_s) / (to_s - from_s)


@dataclass(slots=True)
class _Vm:
    guest: LiveGuest
    sample_at_s: float = math.inf
    every_s: float = math.inf
    reported_bytes: int = 0
    sent_at_s: float = -math.inf


class _Run:
    def __init__(
        self,
        scenario: Scenario,
        contender: Contender,
        draw: Callable[[], float],
        settings: PolicySettings,
    ) -> None:
        self._scenario = scenario
        self._policy = contender.make(settings, draw, scenario.host_mib)
        self._profile = contender.profile
        self._margin_mib = int(scenario.margin_mib * contender.margins)
        self._scorer = Scorer()
        self._now_s = 0.0
        self._wake_at_s = math.inf
        self._listens = False
        self._vms: dict[VmId, _Vm] = {}
        self._used_mib = 0.0
        self._left_mib = float(scenario.available_mib)

    def run(self) -> Outcome:
        scenario, course = self._scenario, list[Moment]()
        for number, vm in enumerate(scenario.vms, 1):
            guest = LiveGuest(vm.kind, untouched=vm.untouched)
            self._vms[VmId(number, vm.name)] = _Vm(guest)
        self._used_mib = scenario.host_mib - scenario.available_mib - self._held_mib()
        for (vm_id, row), vm in zip(self._vms.items(), scenario.vms, strict=True):
            floor = None if vm.floor_mib is None else vm.floor_mib * MIB
            terms = Terms(VmSettings(floor, None, vm.priority, self._profile))
            self._step(Added(vm_id, int(row.guest.memory.size_mib) * MIB, 0, terms))
        poll_at_s, measure_at_s = POLL_S, MEASURED_S
        while self._now_s < scenario.seconds:
            self._advance(min(self._now_s + TICK_S, poll_at_s, max(self._wake_at_s, self._now_s)))
            if self._now_s >= poll_at_s:
                poll_at_s += POLL_S
                measures = self._now_s >= measure_at_s
                measure_at_s += MEASURED_S if measures else 0.0
                self._hear(measures=measures)
                if self._listens:
                    self._step(Looked(self._reading()))
                course.append(self._moment())
            if self._wake_at_s <= self._now_s:
                self._step(Woke(self._reading()))
                # Move a deadline that the policy has left in the past: otherwise this loop would
                # wake the policy again and again without letting time pass.
                if self._wake_at_s <= self._now_s:
                    self._wake_at_s = self._now_s + TICK_S
        scores = self._scorer.scores
        scores.oom_kills = sum(row.guest.programs.oom_kills for row in self._vms.values())
        return Outcome(scores, course)

    def _advance(self, to_s: float) -> None:
        seconds = to_s - self._now_s
        if seconds <= 0:
            return
        self._now_s = to_s
        for vm, row in self._vms.items():
            guest = row.guest
            guest.advance(to_s, seconds)
            balloon = int(guest.memory.balloon_mib * MIB)
            fared = Fared(balloon, guest.stall, guest.is_in_need, guest.is_short)
            self._scorer.guest(vm, fared, to_s, seconds)
        before_mib, self._left_mib = self._left_mib, self._available_mib()
        self._scorer.host(before_mib, self._left_mib, self._scenario.margin_mib, seconds)

    def _hear(self, *, measures: bool) -> None:
        """Gives the policy what guests and their VMMs have to report: balloons' sizes, statistics,
        and, if ``measures``, how much memory VMs occupy."""
        careful = Terms(VmSettings(profile=self._profile)).is_careful
        for vm, row in self._vms.items():
            guest = row.guest
            balloon = int(guest.memory.balloon_mib * MIB) // PAGE_SIZE * PAGE_SIZE
            if balloon != row.reported_bytes:
                row.reported_bytes = balloon
                if careful:
                    self._step(Moved(vm, balloon))
                else:
                    self._policy.note_actual(vm, balloon)
            if not careful:
                continue
            if measures:
                self._step(Measured(vm, int(guest.memory.held_mib * MIB)))
            if row.sample_at_s <= self._now_s:
                row.sample_at_s = self._now_s + row.every_s
                figures = guest.figures(self._now_s)
                if figures is not None and figures.at_s > row.sent_at_s:
                    row.sent_at_s = figures.at_s
                    self._step(Sampled(vm, figures))

    def _step(self, event: Event) -> None:
        step = self._policy.step(event, self._now_s)
        self._wake_at_s = math.inf if step.wake_at_s is None else step.wake_at_s
        self._listens = step.listen
        for vm, target_bytes in step.targets:
            guest = self._vms[vm].guest
            balloon = int(guest.memory.balloon_mib * MIB)
            self._scorer.told(vm, target_bytes, balloon, self._now_s)
            guest.set_target(target_bytes / MIB)
        for vm, every_s in step.watches:
            row = self._vms[vm]
            row.every_s = math.inf if every_s is None else every_s
            row.sample_at_s = min(row.sample_at_s, self._now_s + row.every_s)

    # --- the host -----------------------------------------------------------------------------

    def _held_mib(self) -> float:
        return sum(row.guest.memory.held_mib for row in self._vms.values())

    def _moment(self) -> Moment:
        guests = [row.guest for row in self._vms.values()]
        balloons = sum(guest.memory.balloon_mib for guest in guests)
        stall = sum(guest.stall for guest in guests)
        return Moment(self._now_s, self._left_mib, balloons, stall)

    def _available_mib(self) -> float:
        """How much is available; below 0: by how much the wanted memory exceeds the host's."""
        scenario = self._scenario
        wanted = self._used_mib + at(scenario.demand, self._now_s) + self._held_mib()
        return scenario.host_mib - wanted

    def _reading(self) -> Reading:
        return Reading(max(0, int(self._left_mib)), self._margin_mib)
