"""About a second of each attack that ``make soak`` makes for a minute.

How long a neighbour waits is for the soak to judge. Here is what holds on any machine: the
neighbour lives and its balloon works, descriptors come back, a controller that is killed in the
midst of an attack finds the neighbour again, and one that is told to end gives its memory back.
"""

import os
from pathlib import Path

import pytest

from tests.harness.faults import fault
from tests.soak.attacks import PLANS, Plan, attack

SPEED = 1000.0


def _by_whom(plan: Plan) -> object:
    skip = plan.needs_root and os.geteuid() != 0
    marks = [pytest.mark.skipif(skip, reason="needs root, for other users and their devices")]
    return pytest.param(plan, id=plan.name, marks=marks)


ATTACKS = [_by_whom(plan) for plan in PLANS.values() if plan.act != "nothing"]


@fault("one VMM user who makes a thousand connections")
@pytest.mark.parametrize("plan", ATTACKS)
def test_neighbour_of_an_enemy_keeps_its_balloon_and_gets_its_memory_back(
    plan: Plan, tmp_path: Path
) -> None:
    outcome = attack(plan, 1.0, tmp_path / "a", speed=SPEED)

    assert outcome.failures == []
    assert outcome.fds_back_s is not None
    assert outcome.stop_s is not None
    assert outcome.enemy["at_work"]
