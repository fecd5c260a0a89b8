"""What a guest may waste of the host's time, and how long it must wait then."""

import pytest

from balloon_daemon.device.pace import (
    MAX_TURN_S,
    UNASKED,
    WAKE_UP_S,
    WASTE,
    Account,
    Asked,
    Limit,
    Pace,
    Turn,
)
from tests.harness.faults import fault


def test_pace_lets_an_honest_guest_waste_now_and_then() -> None:
    pace = Pace(WASTE)
    rests = [pace.charge(now_s=100 + 0.01 * number, spent_s=1e-4) for number in range(10_000)]
    assert set(rests) == {0.0}


@fault("floods with kicks without work, or with loops")
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


@fault("inflates, deflates or reports the same pages for ever, in valid chains")
def test_asked_is_what_lies_between_two_targets() -> None:
    asked = Asked(memory_pages=1000, first_pages=1000)
    asked.target(100)
    assert asked.take(1000) == 1000  # A first target may be any way from where the balloon is.
    assert asked.take(10) == 0
    asked.target(160)
    assert asked.take(45) == 45
    assert asked.take(60) == 15
    asked.target(140)
    assert asked.take(20) == 20
    assert asked.take(1) == 0


def test_asked_is_nothing_before_the_first_target_and_never_more_than_the_memory() -> None:
    asked = Asked(memory_pages=1000, first_pages=1000)
    assert asked.take(1) == 0
    for pages in (0, 1000, 0, 1000):
        asked.target(pages)
    assert asked.take(2000) == 1000


def test_same_target_again_asks_for_nothing() -> None:
    asked = Asked(memory_pages=1000, first_pages=1000)
    asked.target(500)
    assert asked.take(1000) == 1000
    asked.target(500)
    assert asked.take(500) == 0


# --- an account: what turns cost ----------------------------------------------------------------

GIB_PAGES = 1 << 18
BUFFER = Turn(chains=1, pages=256)


def rests(account: Account, turn: Turn, spent_s: float, turns: int) -> float:
    """Seconds of rest in so many turns one after the other; the clock runs with them."""
    now_s, rest_s = 100.0, 0.0
    for _ in range(turns):
        now_s += spent_s
        rest = account.charge(now_s, spent_s, turn)
        now_s += rest
        rest_s += rest
    return rest_s


def test_account_charges_nothing_for_what_was_asked() -> None:
    account = Account(GIB_PAGES)
    account.target(GIB_PAGES)
    # However long it took: the machine may have had other work.
    assert rests(account, BUFFER, spent_s=0.05, turns=1024) == 0
    assert rests(account, BUFFER, spent_s=0.05, turns=1024) > 0


@pytest.mark.parametrize(
    ("turn", "spent_s"),
    [
        pytest.param(Turn(chains=2, pages=1, faults=1), 0.01, id="a loop"),
        pytest.param(Turn(chains=2, pages=256, faults=1), 0.02, id="a loop beside a whole buffer"),
        pytest.param(Turn(chains=256, pages=1), 0.01, id="empty chains"),
    ],
)
def test_account_lets_no_page_that_was_asked_pay_for_chains_of_no_use(
    turn: Turn, spent_s: float
) -> None:
    account = Account(GIB_PAGES)
    account.target(GIB_PAGES)
    turns = 1000
    rest_s = rests(account, turn, spent_s, turns)
    busy_s = turns * spent_s
    # Its pages are free, at most 10 ms for 256; all else is waste.
    free_s = turns * turn.pages * MAX_TURN_S / 256
    assert busy_s - free_s <= WASTE.allowance_s + (busy_s + rest_s) * WASTE.share


def test_account_counts_no_more_than_the_work_may_take() -> None:
    account = Account(GIB_PAGES)
    # Half a minute without a core, in the middle of a turn.
    assert account.charge(100.0, 30.0, Turn(chains=1, faults=1)) == 0
    assert account.charge(130.0, 30.0, BUFFER) == 0


@fault("inflates, deflates or reports the same pages for ever, in valid chains")
def test_account_of_reports_is_not_the_balloons() -> None:
    account = Account(GIB_PAGES)
    account.target(GIB_PAGES)
    reports = Turn(chains=1, pages=32 * 512, reports=True)
    assert rests(account, reports, spent_s=0.02, turns=200) > 5
    assert rests(account, BUFFER, spent_s=3e-4, turns=1024) == 0
    # What a guest in need takes back unasked goes by an allowance of its own, too.
    assert account.charge(200.0, 1e-4, BUFFER) == 0


def test_account_that_has_earned_nothing_has_no_allowance() -> None:
    account = Account(GIB_PAGES, earned=0.0)
    account.target(GIB_PAGES)
    assert account.charge(100.0, 1e-3, BUFFER) == pytest.approx((1e-3 + WAKE_UP_S) / UNASKED.share)
    assert account.charge(100.0, 0.0, Turn()) == pytest.approx(WAKE_UP_S / WASTE.share)


def test_account_that_has_earned_half_has_half_of_each() -> None:
    account = Account(GIB_PAGES, earned=0.5)
    account.target(GIB_PAGES)
    assert rests(account, BUFFER, spent_s=1e-3, turns=512) == 0  # Half of its memory.
    spent_s = UNASKED.allowance_s / 2 - WAKE_UP_S
    most = Turn(chains=1000, pages=256_000)
    assert account.charge(200.0, spent_s, most) == pytest.approx(0, abs=1e-6)
    assert account.charge(200.0, 1e-3, BUFFER) > 0
