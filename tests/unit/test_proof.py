"""What the host has got of a balloon."""

import pytest

from balloon_daemon.sizing.decision import Missing
from balloon_daemon.sizing.proof import Proof
from balloon_daemon.units import GIB, MIB

OWN = 256 * MIB + 4 * GIB // 64


def play(
    held: list[int], balloon: list[int], *, step_s: float = 10.0
) -> list[tuple[int, Missing]]:
    """What a VM of 4 GiB says, by the number of its figure."""
    proof, found = Proof(), []
    for number, (held_bytes, balloon_bytes) in enumerate(zip(held, balloon, strict=True)):
        missing = proof.take(held_bytes, 4 * GIB, balloon_bytes, number * step_s)
        if missing is not None:
            found.append((number, missing))
    return found


def test_memory_that_is_never_freed_is_said_once_it_has_lasted_30_s() -> None:
    assert play([4 * GIB] * 9, [2 * GIB] * 9) == [(3, Missing.NEVER_FREED)]


@pytest.mark.parametrize("over", [0, OWN])
def test_what_a_vmm_needs_for_itself_is_not_missing(over: int) -> None:
    assert play([2 * GIB + over] * 9, [2 * GIB] * 9) == []


def test_memory_that_was_never_touched_is_not_missing() -> None:
    assert play([100 * MIB] * 9, [2 * GIB] * 9) == []


def test_memory_that_came_back_was_read_by_something() -> None:
    held = [4 * GIB, 2 * GIB, 2 * GIB, 4 * GIB, 4 * GIB, 4 * GIB, 4 * GIB, 4 * GIB]
    assert play(held, [0] + [2 * GIB] * 7) == [(6, Missing.REFILLED)]


def test_memory_that_was_not_touched_and_is_never_freed_was_not_read_again() -> None:
    # 3 of its 4 GiB are touched, so a balloon of 1 GiB is still no more than what it has not.
    held, balloons = [3 * GIB] * 9, [GIB] * 3 + [3 * GIB] * 6
    assert play(held, balloons) == [(6, Missing.NEVER_FREED)]


def test_host_that_gets_it_after_all_is_said_and_a_short_excess_is_not() -> None:
    held = [4 * GIB] * 4 + [2 * GIB] * 2 + [4 * GIB] * 3 + [2 * GIB]
    found = play(held, [2 * GIB] * 10)
    assert found == [(3, Missing.NEVER_FREED), (4, Missing.NOTHING)]


def test_small_balloon_proves_nothing() -> None:
    assert play([4 * GIB] * 9, [OWN] * 9) == []
