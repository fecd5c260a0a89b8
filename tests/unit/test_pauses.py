"""Pauses: the policy asks for nothing more, and gives back as ever."""

import pytest

from balloon_daemon.errors import StateError
from balloon_daemon.sizing.decision import Reason
from balloon_daemon.sizing.host_events import (
    Added,
    Asked,
    Halted,
    Paused,
    PauseOver,
    Ran,
    Removed,
    Resumed,
)
from balloon_daemon.sizing.need import Figures
from balloon_daemon.sizing.terms import Terms
from balloon_daemon.sizing.vm_settings import Profile, VmSettings
from balloon_daemon.units import GIB, MIB, VmId
from tests.harness.steered_host import (
    CAREFUL,
    LOW,
    PLENTY,
    SEED,
    STEP,
    WELL,
    A,
    B,
    SteeredHost,
)

POOR: Figures = WELL._replace(available_bytes=100 * MIB)


@pytest.fixture(params=[SEED, CAREFUL], ids=["seed", "careful"])
def host(request: pytest.FixtureRequest) -> SteeredHost:
    """Two VMs from which two steps were taken each, on a host that stays low."""
    host = SteeredHost({A: request.param, B: request.param})
    host.seen = LOW
    host.live(1.5)
    assert (host.target(A), host.target(B)) == (2 * STEP, 2 * STEP)
    return host


def test_paused_vm_gives_nothing_more_until_its_time_is_over(host: SteeredHost) -> None:
    host.step(Paused((A,), 10.0))
    host.live(9.0)
    assert (host.target(A), host.target(B)) == (2 * STEP, 11 * STEP)
    assert host.policy.policy(A).held is Reason.PAUSED
    assert host.over == []
    host.live(3.0)
    assert host.over == [PauseOver(A)]
    assert host.target(A) > 2 * STEP


def test_paused_host_takes_from_no_vm_not_even_from_one_that_comes_later(
    host: SteeredHost,
) -> None:
    host.step(Paused((), 600.0))
    later = VmId(3, "vm3")
    host.step(Added(later, GIB, 0, SEED))
    host.live(20.0)
    assert [host.target(vm) for vm in (A, B, later)] == [2 * STEP, 2 * STEP, 0]
    host.step(Resumed(()))
    host.live(3.0)
    assert all(host.target(vm) > 2 * STEP for vm in (A, B))
    assert host.target(later) > 0
    assert host.over == []


def test_paused_vm_gets_memory_back_as_ever(host: SteeredHost) -> None:
    host.step(Paused((), 86_400.0))
    host.seen = PLENTY
    host.live(60.0 + 2 * 30.0 + 2.0)
    assert (host.target(A), host.target(B)) == (0, 0)


def test_paused_vm_is_released_by_an_operator_and_set_by_one(host: SteeredHost) -> None:
    host.step(Paused((), 600.0))
    host.step(Asked(A, 0))
    host.step(Asked(B, 5 * STEP, 60.0))
    host.live(2.0)
    assert (host.target(A), host.target(B)) == (0, 5 * STEP)


def test_paused_guest_in_need_gets_all_back() -> None:
    host = SteeredHost({A: CAREFUL})
    host.seen = LOW
    host.live(3.5)
    host.step(Paused((), 600.0))
    host.figures[A] = POOR
    host.live(1.5)
    assert host.target(A) == 0


def test_guest_that_still_gives_is_asked_for_no_more_than_it_has_given() -> None:
    host = SteeredHost({A: SEED})
    host.gives = False
    host.seen = LOW
    host.live(3.5)
    host.moved(A, STEP + 4096)
    assert host.target(A) == 4 * STEP
    step = host.step(Paused((A,), 600.0))
    assert host.target(A) == STEP + 4096
    assert [decided.decision.reason for decided in step.decisions] == [Reason.PAUSED]
    # Nor is a guest that stopped short told again.
    host.moved(A, STEP)
    host.live(120.0)
    assert host.target(A) == STEP + 4096


def test_guest_that_stands_still_keeps_its_target() -> None:
    host = SteeredHost({A: CAREFUL})
    host.gives = False
    host.seen = LOW
    host.live(0.5)
    host.step(Ran(A, runs=False))
    host.step(Paused((), 600.0))
    assert host.target(A) == STEP


def test_resumed_vm_of_a_low_priority_is_asked_first_again() -> None:
    first = Terms(VmSettings(priority=-1, profile=Profile.SEED))
    host = SteeredHost({A: first, B: SEED})
    host.seen = LOW
    host.live(0.5)
    assert (host.target(A), host.target(B)) == (STEP, 0)
    host.step(Paused((A,), 600.0))
    host.live(1.0)
    assert (host.target(A), host.target(B)) == (STEP, STEP)
    host.step(Resumed((A,)))
    host.live(2.0)
    assert (host.target(A), host.target(B)) == (3 * STEP, STEP)


def test_pauses_of_one_vm_and_of_all_end_apart(host: SteeredHost) -> None:
    host.step(Paused((), 5.0))
    host.step(Paused((A,), 20.0))
    host.live(10.0)
    assert host.over == [PauseOver(None)]
    assert host.target(A) == 2 * STEP
    assert host.target(B) > 2 * STEP
    assert host.policy.steering.pauses.left_s(A, host.now_s) == pytest.approx(10.0)
    assert host.policy.steering.pauses.left_s(None, host.now_s) is None


def test_pause_ends_with_its_vm_and_with_balloond(host: SteeredHost) -> None:
    host.step(Paused((A,), 5.0))
    host.step(Paused((B,), 5.0))
    host.step(Removed(A))
    assert [*host.policy.steering.pauses.vms] == [B]
    host.step(Halted())
    assert [*host.policy.steering.pauses.vms] == []
    host.step(Paused((B,), 5.0))
    assert [*host.policy.steering.pauses.vms] == []
    assert host.wake_at_s is None


def test_pause_of_a_vm_that_there_is_not_changes_nothing(host: SteeredHost) -> None:
    gone = VmId(9, "gone")
    with pytest.raises(StateError):
        host.policy.step(Paused((A, gone), 5.0), host.now_s)
    assert host.policy.steering.pauses.vms == ()
