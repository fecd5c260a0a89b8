"""When a balloon moves although nobody here has asked for it."""

import math

import pytest

from balloon_daemon.sizing.drift import SETTLED_S, Bearing, Drift
from balloon_daemon.units import GIB, MIB


def reached(target_mib: int) -> Bearing:
    """A balloon that was asked for this size at 0 s, and had it a second later."""
    bearing = Bearing()
    bearing.moved(0, 0.0)
    bearing.told(target_mib * MIB, 0.0)
    assert bearing.moved(target_mib * MIB, 1.0) is None
    return bearing


def test_balloon_that_shrinks_below_its_target_has_shrunk_by_itself() -> None:
    bearing = reached(512)
    assert bearing.moved(512 * MIB - 4096, 2.0) is None
    assert bearing.moved(511 * MIB, 2.0) is Drift.SHRUNK


def test_balloon_that_shrinks_on_its_way_up_has_shrunk_by_itself() -> None:
    bearing = reached(100)
    bearing.told(512 * MIB, 2.0)
    assert bearing.moved(300 * MIB, 3.0) is None
    assert bearing.moved(298 * MIB, 4.0) is Drift.SHRUNK


def test_balloon_that_was_asked_to_shrink_does_as_it_was_asked() -> None:
    bearing = reached(512)
    bearing.told(0, 10.0)
    for second, size_mib in enumerate((400, 200, 1, 0)):
        assert bearing.moved(size_mib * MIB, 11.0 + second) is None


def test_balloon_that_still_shrinks_when_it_is_asked_for_more_does_as_it_was_asked() -> None:
    bearing = reached(512)
    bearing.told(256 * MIB, 10.0)
    assert bearing.moved(400 * MIB, 10.5) is None
    bearing.told(512 * MIB, 11.0)
    assert bearing.moved(350 * MIB, 11.5) is None
    # The balloon has grown: from now on it may not shrink.
    assert bearing.moved(360 * MIB, 12.0) is None
    assert bearing.moved(358 * MIB, 13.0) is Drift.SHRUNK


def test_balloon_that_shrinks_on_for_a_moment_when_it_is_asked_for_more_does_as_asked() -> None:
    bearing = reached(512)
    bearing.told(256 * MIB, 10.0)
    assert bearing.moved(400 * MIB, 10.5) is None
    bearing.told(512 * MIB, 11.0)
    for at_s, balloon_mib in ((11.2, 350), (11.4, 300), (11.6, 260)):
        assert bearing.moved(balloon_mib * MIB, at_s) is None
    # No target was as low as this size and the next one.
    assert bearing.moved(250 * MIB, 11.8) is None
    assert bearing.moved(248 * MIB, 12.0) is Drift.SHRUNK


def test_balloon_that_shrinks_on_long_after_it_was_asked_for_more_does_so_by_itself() -> None:
    bearing = reached(512)
    bearing.told(256 * MIB, 10.0)
    assert bearing.moved(400 * MIB, 10.5) is None
    bearing.told(512 * MIB, 11.0)
    assert bearing.moved(390 * MIB, 11.0 + SETTLED_S) is None
    assert bearing.moved(380 * MIB, 11.2 + SETTLED_S) is Drift.SHRUNK


@pytest.mark.parametrize("told_before_it_is_known", [False, True])
def test_size_that_was_on_its_way_when_a_lower_target_was_sent_is_no_size_to_keep(
    told_before_it_is_known: bool,
) -> None:
    bearing = reached(100)
    bearing.told(512 * MIB, 2.0)
    # The balloon has 300 MiB by now, but the VMM has not reported that yet.
    bearing.told(200 * MIB, 3.0)
    if told_before_it_is_known:
        bearing.told(512 * MIB, 3.1)
    assert bearing.moved(300 * MIB, 3.2) is None
    if not told_before_it_is_known:
        bearing.told(512 * MIB, 3.3)
    for at_s, balloon_mib in ((3.4, 280), (3.6, 250), (3.8, 240), (4.0, 260)):
        assert bearing.moved(balloon_mib * MIB, at_s) is None
    # The balloon has grown: from now on it may not shrink.
    assert bearing.moved(258 * MIB, 5.0) is Drift.SHRUNK


def test_balloon_that_grows_beyond_its_target_has_another_controller() -> None:
    bearing = reached(256)
    assert bearing.moved(271 * MIB, 6.0) is None
    assert bearing.moved(272 * MIB, 7.0) is Drift.GROWN


def test_balloon_that_grows_beyond_a_target_that_rises_each_second_has_one_too() -> None:
    bearing = reached(100)
    for second in range(2, 10):
        bearing.told(100 * MIB + second * MIB, float(second))
        assert bearing.moved(100 * MIB + second * MIB, second + 0.5) is None
    assert bearing.moved(200 * MIB, 9.9) is Drift.GROWN


def test_driver_may_finish_what_it_was_asked_for_before() -> None:
    bearing = reached(100)
    bearing.told(512 * MIB, 2.0)
    bearing.moved(200 * MIB, 3.0)
    bearing.told(0, 3.1)
    assert bearing.moved(300 * MIB, 4.0) is None
    assert bearing.moved(100 * MIB, 7.2) is None
    assert bearing.moved(130 * MIB, 8.2) is Drift.GROWN


def test_balloon_that_was_there_before_is_nobody_elses_target() -> None:
    bearing = Bearing()
    bearing.told(0, 0.0)
    for second in (0.0, 30.0, 60.0):
        assert bearing.moved(GIB, second) is None


def test_balloon_that_is_gone_at_once_is_judged_when_its_guest_has_run_on() -> None:
    bearing = reached(512)
    assert bearing.moved(0, 5.0) is None
    assert bearing.check_at_s == 9.0
    assert bearing.gone(8.9) is None
    assert bearing.gone(9.0) is Drift.SHRUNK
    assert bearing.check_at_s == math.inf


def test_balloon_of_a_guest_that_was_suspended_or_inflates_again_is_not_judged() -> None:
    suspended, back = reached(512), reached(512)
    for bearing in (suspended, back):
        bearing.moved(0, 5.0)
    suspended.begin_anew(6.0)
    assert back.moved(10 * MIB, 7.0) is None
    for bearing in (suspended, back):
        assert bearing.gone(9.0) is None
        assert bearing.moved(512 * MIB, 20.0) is None


def test_balloon_that_a_reset_guest_inflates_again_is_not_judged() -> None:
    bearing = reached(512)
    bearing.begin_anew(5.0)  # Firmware and boot, in which no size is known.
    bearing.begin_anew(25.0)
    for at_s, balloon_mib in ((25.1, 2), (26.0, 200), (29.5, 400), (31.0, 512)):
        assert bearing.moved(balloon_mib * MIB, at_s) is None
    assert bearing.moved(500 * MIB, 32.0) is Drift.SHRUNK
