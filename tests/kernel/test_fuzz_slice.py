"""A few seconds of what ``make fuzz`` does for as long as one likes."""

from pathlib import Path

import pytest

from tests.fuzz import hostile_users, seccomp_meaning, state_machine, whole_daemon
from tests.fuzz.targets import TARGETS, Target
from tests.fuzz.unguided import slice_of
from tests.harness.faults import fault
from tests.harness.invariants import InvariantBrokenError

SEED = 5
"""Every run of the tests is the same; ``make fuzz`` draws another one each time."""


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
def test_kept_inputs_and_some_mutations_break_nothing(target: Target) -> None:
    assert slice_of(target, seed=SEED, at_least=150) >= 150


@pytest.mark.parametrize("name", ["state_machine", "seccomp_meaning"])
def test_timed_campaign_finds_nothing(name: str, tmp_path: Path) -> None:
    campaigns = {"state_machine": state_machine, "seccomp_meaning": seccomp_meaning}
    outcome = campaigns[name].campaign(0.4, SEED, tmp_path)

    assert outcome.findings == []
    assert outcome.executions > 0


@fault("hostile VMMs and guests beside an honest one")
def test_whole_daemon_among_enemies_stands(tmp_path: Path) -> None:
    outcome = whole_daemon.campaign(0.5, SEED, tmp_path / "battle")

    assert outcome.findings == []
    assert outcome.executions > 20


@fault("one VMM user who makes a thousand connections")
def test_many_connections_of_one_user_leave_a_whole_daemon_as_it_was(tmp_path: Path) -> None:
    outcome = hostile_users.campaign(0.5, SEED, tmp_path / "crowd")

    assert outcome.findings == []
    assert outcome.executions >= 20


def test_target_that_breaks_an_invariant_is_told_with_its_input(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(data: bytes) -> None:
        raise InvariantBrokenError("a page is lost")

    monkeypatch.setattr(Target, "load", lambda self: broken)

    with pytest.raises(AssertionError, match=r"tubes: input [0-9a-f]+"):
        slice_of(TARGETS["tubes"], seed=SEED, at_least=1)
