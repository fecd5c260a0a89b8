"""What a guest may waste of the host's time, and how long it must wait then."""

import pytest

from balloon_daemon.device.pace import UNASKED, WAKE_UP_S, WASTE, Asked, Limit, Pace


def test_pace_lets_an_honest_guest_waste_now_and_then() -> None:
    pace = Pace(WASTE)
    rests = [pace.charge(now_s=100 + 0.01 * number, spent_s=1e-4) for number in range(10_000)]
    assert set(rests) == {0.0}


@pytest.mark.parametrize("limit", [WASTE, UNASKED])
@pytest.mark.parametrize("spent_s", [0.0, 5e-6, 1e-3, 0.01])
def test_pace_of_a_flood_is_a_share_of_a_core_for_ever(spent_s: float, limit: Limit) -> None:
    pace, now_s, wasted_s = Pace(limit), 100.0, 0.0
    while now_s < 200:
        now_s += spent_s + WAKE_UP_S
        wasted_s += spent_s + WAKE_UP_S
        now_s += pace.charge(now_s, spent_s)
    most_s = limit.allowance_s + (now_s - 100) * limit.share
    assert wasted_s <= most_s + spent_s + WAKE_UP_S


def test_pace_earns_its_allowance_again_and_no_more_than_that() -> None:
    pace = Pace(WASTE)
    assert pace.charge(100, WASTE.allowance_s) > 0
    assert pace.charge(1_000_000, WASTE.allowance_s / 2) == 0
    assert pace.charge(1_000_000, WASTE.allowance_s) > 0


def test_pace_of_one_long_turn_is_paid_back_in_proportion() -> None:
    rest = Pace(WASTE).charge(100, WASTE.allowance_s + 0.01)
    assert rest == pytest.approx((0.01 + WAKE_UP_S) / WASTE.share)


def test_asked_is_what_lies_between_two_targets() -> None:
    asked = Asked(memory_pages=1000)
    asked.target(100)
    assert asked.take(1000) == 0  # A first target may be any way from where the balloon is.
    assert asked.take(10) == 1
    asked.target(160)
    assert asked.take(45) == 0
    assert asked.take(60) == pytest.approx(0.75)
    asked.target(140)
    assert asked.take(20) == 0
    assert asked.take(1) == 1


def test_asked_is_nothing_before_the_first_target_and_never_more_than_the_memory() -> None:
    asked = Asked(memory_pages=1000)
    assert asked.take(1) == 1
    for pages in (0, 1000, 0, 1000):
        asked.target(pages)
    assert asked.take(2000) == pytest.approx(0.5)


def test_same_target_again_asks_for_nothing() -> None:
    asked = Asked(memory_pages=1000)
    asked.target(500)
    assert asked.take(1000) == 0
    asked.target(500)
    assert asked.take(500) == 1
