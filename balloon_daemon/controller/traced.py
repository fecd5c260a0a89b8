"""A host's policy whose steps are published, so that they can be recorded and replayed.

Runs in the controller, with ``--record`` alone.
"""

from collections.abc import Callable

from balloon_daemon.controller.governor import MakePolicy
from balloon_daemon.events import Publish, Stepped
from balloon_daemon.sizing.balloon_policy import PolicySettings
from balloon_daemon.sizing.decision import Reason
from balloon_daemon.sizing.host_events import Event, HostStep, Moved
from balloon_daemon.sizing.host_policy import HostPolicy
from balloon_daemon.units import VmId


class TracedPolicy(HostPolicy):
    """A host's policy that publishes all that it is told, draws and decides.

    Args:
        settings: the policies' numbers.
        draw: gives a uniform number of [0, 1).
        against_more: why a VM must not be asked for more just now.
        publish: takes events.
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

    def step(self, event: Event, now_s: float) -> HostStep:
        self._draws.clear()
        self._objections.clear()
        step = super().step(event, now_s)
        draws, objections = tuple(self._draws), tuple(self._objections.items())
        self._publish(Stepped(now_s, event, draws, objections, step.decisions))
        return step

    def note_actual(self, vm: VmId, actual_bytes: int) -> None:
        super().note_actual(vm, actual_bytes)
        self._publish(Stepped(self._clock(), Moved(vm, actual_bytes)))


def traced(publish: Publish, clock: Callable[[], float]) -> MakePolicy:
    """Gives a ``MakePolicy`` of traced policies.

    Args:
        publish: takes events.
        clock: the clock whose times ``step`` is given.
    """
    return lambda settings, draw, against_more: TracedPolicy(
        settings, draw, against_more, publish, clock
    )
