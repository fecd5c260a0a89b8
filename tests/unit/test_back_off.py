"""How long something is left alone."""

from balloon_daemon.sizing.back_off import BackOff


def test_wait_doubles_from_one_minute_to_half_an_hour_while_it_goes_wrong_again() -> None:
    wait, now_s, lengths = BackOff(), 1000.0, []
    for _ in range(7):
        lengths.append(wait.begin(now_s))
        now_s = wait.until_s + 1.0
    assert lengths == [60.0, 120.0, 240.0, 480.0, 960.0, 1800.0, 1800.0]


def test_wait_is_short_again_once_all_went_well_for_as_long() -> None:
    wait = BackOff()
    wait.begin(0.0)
    wait.begin(60.0)
    assert wait.until_s == 180.0
    assert wait.begin(180.0 + 119.0) == 240.0
    assert wait.begin(180.0 + 119.0 + 240.0 + 240.0) == 60.0


def test_wait_lasts_until_its_end() -> None:
    wait = BackOff()
    assert not wait.lasts(0.0)
    wait.begin(0.0)
    assert wait.lasts(59.9)
    assert not wait.lasts(60.0)
