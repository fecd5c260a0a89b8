"""What a guest may waste of the host's time, and how long it must wait then."""

import pytest

from balloon_daemon.device.pace import ALLOWANCE_S, SHARE, WAKE_UP_S, Pace


def test_pace_lets_an_honest_guest_waste_now_and_then() -> None:
    pace = Pace()
    rests = [pace.waste(now_s=100 + 0.01 * number, spent_s=1e-4) for number in range(10_000)]
    assert set(rests) == {0.0}


@pytest.mark.parametrize("spent_s", [0.0, 5e-6, 1e-3, 0.01])
def test_pace_of_a_flood_is_a_share_of_a_core_for_ever(spent_s: float) -> None:
    pace, now_s, wasted_s = Pace(), 100.0, 0.0
    while now_s < 200:
        now_s += spent_s + WAKE_UP_S
        wasted_s += spent_s + WAKE_UP_S
        now_s += pace.waste(now_s, spent_s)
    assert wasted_s <= ALLOWANCE_S + (now_s - 100) * SHARE + spent_s + WAKE_UP_S


def test_pace_earns_its_allowance_again_and_no_more_than_that() -> None:
    pace = Pace()
    assert pace.waste(100, ALLOWANCE_S) > 0
    assert pace.waste(1_000_000, ALLOWANCE_S / 2) == 0
    assert pace.waste(1_000_000, ALLOWANCE_S) > 0


def test_pace_of_one_long_turn_is_paid_back_in_proportion() -> None:
    rest = Pace().waste(100, ALLOWANCE_S + 0.01)
    assert rest == pytest.approx((0.01 + WAKE_UP_S) / SHARE)
