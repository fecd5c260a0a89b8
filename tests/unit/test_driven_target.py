"""Which target a VMM is told, and which part of a balloon is balloond's."""

from balloon_daemon.guests.driven.target import LEAST_LEFT_BYTES, BalloonTarget
from balloon_daemon.sizing.balloon_policy import max_balloon_bytes
from balloon_daemon.units import GIB, MIB
from tests.harness.faults import fault


def told(balloon: BalloonTarget, target_bytes: int) -> int | None:
    """What the VMM is told of a target, which it takes."""
    balloon.want(target_bytes)
    due_bytes = balloon.due()
    if due_bytes is not None:
        balloon.sent(balloon.asked_bytes)
    return due_bytes


def test_target_is_told_once() -> None:
    balloon = BalloonTarget(4 * GIB, 0, None)
    assert told(balloon, GIB) == GIB
    assert told(balloon, GIB) is None


@fault("stops at the first page that it cannot have")
def test_driver_that_has_stopped_short_is_told_again_when_the_target_is_wanted_again() -> None:
    balloon = BalloonTarget(4 * GIB, 0, None)
    told(balloon, GIB)
    for balloon_bytes in (100 * MIB, 300 * MIB):
        balloon.take(4 * GIB, balloon_bytes)
        assert told(balloon, GIB) is None  # It moves.
        balloon.take(4 * GIB, balloon_bytes)
        assert balloon.due() is None
        assert told(balloon, GIB) == GIB
    for _ in range(2):
        balloon.take(4 * GIB, GIB)
    assert told(balloon, GIB) is None


def test_guest_that_has_taken_pages_back_is_not_told_again() -> None:
    balloon = BalloonTarget(4 * GIB, 0, None)
    told(balloon, GIB)
    for balloon_bytes in (300 * MIB, 200 * MIB, 200 * MIB):
        balloon.take(4 * GIB, balloon_bytes)
    assert told(balloon, GIB) is None
    assert told(balloon, GIB + MIB) == GIB + MIB


def test_guest_whose_balloons_size_is_not_known_is_not_told_again() -> None:
    balloon = BalloonTarget(4 * GIB, 0, None)
    told(balloon, GIB)
    for _ in range(2):
        balloon.take(4 * GIB, None)
    assert told(balloon, GIB) is None


def test_vm_that_nothing_was_taken_of_is_told_nothing() -> None:
    balloon = BalloonTarget(4 * GIB, 0, None)
    assert told(balloon, 0) is None


def test_balloon_that_was_there_is_no_part_of_the_vm() -> None:
    balloon = BalloonTarget(4 * GIB, GIB, None)
    assert (balloon.size_bytes, balloon.taken_bytes) == (3 * GIB, 0)
    assert told(balloon, 512 * MIB) == GIB + 512 * MIB
    balloon.take(4 * GIB, GIB + 512 * MIB)
    assert balloon.taken_bytes == 512 * MIB


def test_all_is_given_back_to_the_base_and_no_further() -> None:
    balloon = BalloonTarget(4 * GIB, GIB, None)
    told(balloon, 512 * MIB)
    balloon.take(4 * GIB, GIB + 512 * MIB)
    assert told(balloon, 0) == GIB
    assert balloon.changed
    balloon.take(4 * GIB, GIB)
    assert not balloon.changed


def test_giving_back_takes_nothing_of_a_guest_with_less_than_its_base() -> None:
    balloon = BalloonTarget(4 * GIB, GIB, None)
    told(balloon, 512 * MIB)
    balloon.take(4 * GIB, 100 * MIB)
    assert told(balloon, 0) == 100 * MIB


def test_base_is_another_connections_where_it_noted_one() -> None:
    balloon = BalloonTarget(4 * GIB, 2 * GIB, GIB)
    assert balloon.changed
    assert (balloon.size_bytes, balloon.taken_bytes) == (3 * GIB, GIB)
    assert told(balloon, GIB) == 2 * GIB


def test_base_follows_a_balloon_that_somebody_else_moves_until_it_is_changed() -> None:
    balloon = BalloonTarget(4 * GIB, None, None)
    for balloon_bytes in (0, GIB, 2 * GIB):
        balloon.take(4 * GIB, balloon_bytes)
        assert balloon.base_bytes == balloon_bytes
    told(balloon, 512 * MIB)
    balloon.take(4 * GIB, 2 * GIB + MIB)
    assert balloon.base_bytes == 2 * GIB


def test_guest_keeps_some_memory_whatever_is_wanted() -> None:
    assert told(BalloonTarget(4 * GIB, 0, None), 1 << 63) == 4 * GIB - LEAST_LEFT_BYTES
    assert told(BalloonTarget(256 * MIB, 0, None), GIB) == 128 * MIB


def test_guest_with_a_balloon_of_its_own_gives_all_that_the_policy_may_ask_for() -> None:
    balloon = BalloonTarget(512 * MIB, 8 * MIB, None)
    assert told(balloon, max_balloon_bytes(balloon.size_bytes)) == (8 + 252) * MIB


def test_target_below_zero_gives_all_back() -> None:
    balloon = BalloonTarget(4 * GIB, GIB, 0)
    assert told(balloon, -GIB) == 0


def test_target_is_whole_pages() -> None:
    assert told(BalloonTarget(4 * GIB, 0, None), GIB + 1) == GIB


def test_target_of_before_a_reset_is_not_forgotten() -> None:
    balloon = BalloonTarget(4 * GIB, 0, None)
    told(balloon, GIB)
    balloon.take(4 * GIB, None)
    assert balloon.taken_bytes == 0
    assert told(balloon, 0) == 0


def test_base_that_may_be_another_vms_is_no_more_than_the_balloon_that_is_there() -> None:
    balloon = BalloonTarget(GIB, 100 * MIB, 600 * MIB, is_same=False)
    assert told(balloon, 64 * MIB) == 164 * MIB


def test_base_that_may_be_another_vms_is_told_nobody_before_the_balloons_size_is_known() -> None:
    balloon = BalloonTarget(GIB, None, 600 * MIB, is_same=False)
    assert balloon.due() is None
    balloon.take(GIB, 0)
    assert balloon.due() == 0
    assert (balloon.size_bytes, balloon.taken_bytes) == (GIB, 0)


def test_what_was_taken_is_given_back_to_a_base_that_may_be_another_vms() -> None:
    balloon = BalloonTarget(GIB, None, 100 * MIB, is_same=False)
    balloon.take(GIB, 600 * MIB)
    assert balloon.due() == 100 * MIB
