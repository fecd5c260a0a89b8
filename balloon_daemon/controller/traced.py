"""A sizing policy (``HostPolicy``) whose steps are published, to be recorded and replayed.

Runs in the controller with ``--record``, and wherever there is an API, because a client of the API
may ask for a trace at any time.
"""

from collections.abc import Callable, Iterable

from balloon_daemon.controller.reported import told_policy
from balloon_daemon.controller.survey import Survey
from balloon_daemon.controller.vm import Vm
from balloon_daemon.events import Publish, Stepped, TraceBegun, VmFound
from balloon_daemon.guests.seam import GuestState, StateChanged
from balloon_daemon.host.watch import MemoryWatch
from balloon_daemon.sizing.balloon_policy import PolicySettings
from balloon_daemon.sizing.decision import Reason
from balloon_daemon.sizing.host_events import Event, HostStep, Moved, Reported, Seen
from balloon_daemon.sizing.resumable import ResumablePolicy
from balloon_daemon.units import VmId


class TracedPolicy(ResumablePolicy):
    """A ``HostPolicy`` that publishes, while ``publishes`` is true, each event that it handles,
    with the random numbers that it draws and what it decides.

    Args:
        settings: the numbers of ChromeOS's balloon policy.
        draw: gives a uniform number of [0, 1).
        against_more: why a VM must not be asked for more just now.
        publish: called with each event to be published.
        clock: the clock whose times ``step`` is given.
    """

    def __init__(
        self,
        settings: PolicySettings,
        draw: Callable[[], float],
        against_more: Callable[[VmId, int], Reason | None],
        publish: Publish,
        clock: Callable[[], float],
    ) -> None:
        draws: list[float] = []
        objections: dict[VmId, Reason] = {}

        def noted_draw() -> float:
            draws.append(draw())
            return draws[-1]

        def noted_objection(vm: VmId, level: int) -> Reason | None:
            reason = against_more(vm, level)
            if reason is not None:
                objections[vm] = reason
            return reason

        super().__init__(settings, noted_draw, noted_objection)
        self._draws = draws
        self._objections = objections
        self._publish = publish
        self._clock = clock
        self.publishes = True
        """Whether the steps are published; the decisions are the same either way."""

    def ignores(self, seen: Seen) -> bool:
        return not self.publishes and super().ignores(seen)

    def step(self, event: Event, now_s: float) -> HostStep:
        self._draws.clear()
        self._objections.clear()
        step = super().step(event, now_s)
        if not self.publishes:
            return step
        draws, objections = tuple(self._draws), tuple(self._objections.items())
        self._publish(Stepped(now_s, event, draws, objections, step.decisions))
        return step

    def note_actual(self, vm: VmId, actual_bytes: int) -> None:
        super().note_actual(vm, actual_bytes)
        if self.publishes:
            self._publish(Stepped(self._clock(), Moved(vm, actual_bytes)))


class Traced:
    """Has the sizing policy's steps published while a client records a trace. ``api/traces.py``
    begins and ends that by the methods of ``Tracing``.

    Args:
        publish: called with each event to be published.
        clock: the clock whose times the policy's ``step`` is given.
        watch: reads the low-memory source.
        always: whether the steps are published all the time, as with ``--record``.
    """

    def __init__(
        self,
        publish: Publish,
        clock: Callable[[], float],
        watch: MemoryWatch,
        *,
        always: bool,
    ) -> None:
        self._publish = publish
        self._clock = clock
        self._watch = watch
        self._always = always
        self._number = 0
        self._policy: TracedPolicy
        self._vms: Callable[[], Iterable[Vm]]
        self._survey: Survey | None = None

    def make(
        self,
        settings: PolicySettings,
        draw: Callable[[], float],
        against_more: Callable[[VmId, int], Reason | None],
    ) -> TracedPolicy:
        """Makes the policy of this run (the type ``MakePolicy``)."""
        self._policy = TracedPolicy(settings, draw, against_more, self._publish, self._clock)
        self._policy.publishes = self._always
        return self._policy

    def serve(self, vms: Callable[[], Iterable[Vm]], survey: Survey | None) -> None:
        """Sets what ``begin`` needs; called once, before the first ``begin``.

        Args:
            vms: gives the VMs.
            survey: the ``Survey`` that ``begin`` begins and ``end`` closes; None: the survey goes
                on all the time.
        """
        self._vms, self._survey = vms, survey

    def begin(self) -> None:
        """Publishes the sizing policy's present state, and all of its steps from now on."""
        self._number += 1
        seen, now_s = self._watch.look(), self._clock()
        self._publish(TraceBegun(now_s, self._number, seen))
        of_vms = {vm.guest.vm: vm for vm in self._vms()}
        for found in self._policy.found():
            vm = of_vms.get(found.vm)
            reports = () if vm is None or found.lasting is None else _last_reports(vm)
            self._publish(VmFound(now_s, self._number, found, reports))
        self._policy.publishes = True
        if self._survey is not None:
            self._survey.begin()

    def end(self) -> None:
        """Publishes no more, unless ``--record`` does."""
        self._policy.publishes = self._always
        if self._survey is not None:
            self._survey.close()


def _last_reports(vm: Vm) -> tuple[Reported, ...]:
    """A careful VM's last reports, as the events by which the sizing policy got them."""
    reports = [report for report in (vm.stats, vm.held) if report is not None]
    told = [told_policy(vm.guest.vm, report) for report in reports]
    if vm.state is not GuestState.RUNNING:
        told.append(told_policy(vm.guest.vm, StateChanged(vm.state)))
    return tuple(told)
