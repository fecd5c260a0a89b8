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
from balloon_daemon.records.history import ATTACHED_A_SECOND, ATTACHED_AT_ONCE, History
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
        self.now_s = 0.0
        self.history = History(cast(Scribe, self), lambda event: None, lambda: self.now_s)

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


@fault("a user with 65,536 subordinate users connects as each of them")
def test_user_whose_share_of_the_history_is_whole_again_is_forgotten() -> None:
    lines = Lines()
    for uid in range(10, 1_010):
        vm = VmId(uid, f"vm{uid}")
        lines.tell(Connected(vm, uid), VmAttached(vm, GIB, 0, 16), Disconnected(vm))
    # Before that no user is forgotten: a user who came again would get a new share.
    assert len(lines.history._budgets) == 1_000
    lines.now_s = 1 / ATTACHED_A_SECOND
    for number in range(2_000, 2_500):
        vm = VmId(number, f"vm{number}")
        lines.tell(Connected(vm, GREEDY), VmAttached(vm, GIB, 0, 16), Disconnected(vm))
    assert set(lines.history._budgets) == {GREEDY}
