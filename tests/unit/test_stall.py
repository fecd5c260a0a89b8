"""When a balloon grows too slowly, and when it only seems to."""

import math

import pytest

from balloon_daemon.sizing.stall import Progress
from balloon_daemon.units import MIB
from tests.harness.faults import fault


def asked(target_mib: int, now_s: float = 0.0) -> Progress:
    progress = Progress()
    progress.told(target_mib * MIB, now_s)
    return progress


def test_balloon_without_progress_is_stalled_after_4_s() -> None:
    progress = asked(512)
    progress.moved(100 * MIB, 1.0)
    assert progress.check_at_s == 4.0
    # 100 MiB in the first 4 s: a new window begins, but the balloon stands since 1 s.
    assert not progress.is_stalled(3.9)
    assert not progress.is_stalled(4.9)
    assert progress.check_at_s == 5.0
    assert progress.is_stalled(5.0)


@pytest.mark.parametrize(("mib_a_second", "stalled"), [(14, True), (15, False), (300, False)])
def test_balloon_is_stalled_below_15_mib_a_second(mib_a_second: int, stalled: bool) -> None:
    progress = asked(10_000)
    found = []
    for second in range(1, 13):
        progress.moved(second * mib_a_second * MIB, float(second))
        found.append(progress.is_stalled(float(second)))
    assert any(found) is stalled


def test_higher_target_does_not_begin_the_window_anew() -> None:
    progress = asked(32)
    for second in range(1, 4):
        progress.told((second + 1) * 32 * MIB, float(second))
    assert progress.is_stalled(4.0)


def test_balloon_that_reaches_each_target_is_never_stalled_however_small_the_steps() -> None:
    progress = Progress()
    for second in range(16):
        progress.told(second * MIB * 2, float(second))
        progress.moved(second * MIB * 2 - MIB // 2, second + 0.9)
        assert not progress.is_stalled(second + 0.9)
    assert progress.check_at_s == math.inf


@fault("a guest gives no more")
@pytest.mark.parametrize("late", [1, 2])
def test_balloon_whose_sizes_come_late_is_not_stalled_by_small_steps(late: int) -> None:
    # A VM of 512 MiB: 16 MiB each second, and no size is told before the next target is sent.
    progress = Progress()
    for second in range(1, 17):
        progress.told(second * 16 * MIB, float(second))
        if second > late:
            progress.moved((second - late) * 16 * MIB, second + 0.5)
        assert not progress.is_stalled(second + 0.5)


def test_giving_back_is_never_a_stall() -> None:
    progress = asked(512)
    progress.moved(512 * MIB, 1.0)
    progress.told(0, 2.0)
    assert progress.check_at_s == math.inf
    assert not progress.is_stalled(1000.0)


def test_guest_that_stands_still_is_no_stall_and_begins_anew_when_it_goes_on() -> None:
    progress = asked(512)
    progress.stop(1.0, stopped=True)
    assert progress.check_at_s == math.inf
    assert not progress.is_stalled(100.0)
    progress.stop(100.0, stopped=False)
    assert not progress.is_stalled(103.9)
    assert progress.is_stalled(104.0)


@pytest.mark.parametrize(
    ("reached_mib", "stuck"), [(512 - 17, True), (512 - 16, False), (512, False)]
)
def test_balloon_is_stuck_where_it_stands_far_from_its_target(
    reached_mib: int, stuck: bool
) -> None:
    progress = asked(512)
    progress.moved(reached_mib * MIB, 0.1)
    assert not progress.is_stuck(3.9)
    assert progress.is_stuck(4.2) is stuck


def test_balloon_is_stuck_where_it_grows_by_less_than_16_mib() -> None:
    progress = asked(512)
    for second in range(1, 5):
        progress.moved(second * 3 * MIB, float(second))
    assert progress.is_stuck(4.0)
    progress.moved(17 * MIB, 4.0)
    assert not progress.is_stuck(4.0)


@fault("a guest gives no more")
def test_moment_at_which_nothing_is_found_is_not_to_be_looked_at_again() -> None:
    # Of this time and 4 s more the difference is rounded to less than 4 s.
    grew_at_s = 8189.035009917622
    now_s = grew_at_s + 4.0
    assert now_s - grew_at_s < 4.0
    progress = Progress()
    progress.told(1024 * MIB, grew_at_s - 1)
    progress.moved(200 * MIB, grew_at_s)
    assert progress.is_stalled(now_s) or progress.check_at_s > now_s


def test_balloon_found_stalled_is_looked_at_again_only_after_news_of_it() -> None:
    progress = Progress()
    progress.told(1024 * MIB, 100.0)
    assert progress.is_stalled(104.0)
    assert progress.check_at_s == math.inf
    progress.moved(10 * MIB, 105.0)
    assert progress.check_at_s == 109.0
