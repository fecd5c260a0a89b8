"""Which events a history has, where one user has many VMs."""

import json
from typing import cast

import pytest

from balloon_daemon.events import (
    Connected,
    Decided,
    Disconnected,
    Event,
    Fault,
    VmAttached,
    VmDriven,
    VmLost,
)
from balloon_daemon.records.history import ATTACHED_AT_ONCE, History
from balloon_daemon.records.scribe import Scribe
from balloon_daemon.sizing.decision import Decision, Reading, Reason
from balloon_daemon.units import GIB, VmId
from tests.harness.faults import fault

GREEDY, OTHER = 1, 2
UP = Decision(Reason.LOW_MEMORY, 0, 1, 16, 1 << 25, Reading(10, 400))


class Lines:
    """Takes lines, as a ``Scribe`` does that has no program."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.history = History(cast(Scribe, self), lambda event: None)

    def send(self, content: bytes) -> bool:
        _, values = json.loads(content)
        self.taken.append(values[1])
        return True

    def tell(self, *events: Event) -> None:
        for event in events:
            self.history(event, 1e9)


@fault("one user attaches and leaves over and over, with --history")
@pytest.mark.parametrize("driven", [False, True])
def test_user_who_attaches_over_and_over_has_no_more_than_a_share_of_the_history(
    *, driven: bool
) -> None:
    lines = Lines()
    for number in range(1, 2 * ATTACHED_AT_ONCE):
        vm = VmId(number, f"vm{number}")
        of_greedy = VmDriven(vm, "/s", GIB, 7, uid=GREEDY) if driven else Connected(vm, GREEDY)
        lines.tell(of_greedy, VmAttached(vm, GIB, 0, 16), Decided(vm, UP))
        lines.tell(VmLost(vm, Fault.GONE) if driven else Disconnected(vm))
    assert len(lines.taken) == 2 * ATTACHED_AT_ONCE
    other = VmId(2 * ATTACHED_AT_ONCE, "other")
    of_nobody = VmId(other.number + 1, "domain")
    lines.tell(Connected(other, OTHER))
    for vm in (other, of_nobody):
        lines.tell(VmAttached(vm, GIB, 0, 16), Decided(vm, UP))
    assert lines.taken[-4:] == ["other", "other", "domain", "domain"]
