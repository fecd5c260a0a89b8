"""What the host would have available without any balloon, and how fast that falls."""

from balloon_daemon.sizing.outlook import CALM_S, Outlook, Returned
from balloon_daemon.units import MIB


def seen(*readings: tuple[float, int, int, int]) -> Outlook:
    """(time, available, in balloons, asked for), in MiB."""
    outlook = Outlook()
    for at_s, available, actual, told in readings:
        outlook.take(available * MIB, actual * MIB, told * MIB, at_s)
    return outlook


def test_what_balloons_give_is_not_bare_memory() -> None:
    outlook = seen((0.0, 1000, 0, 300), (1.0, 1300, 300, 300))
    assert outlook.bare_bytes == 1000 * MIB
    assert outlook.fall_bytes_s == 0


def test_steepest_fall_of_three_seconds_counts() -> None:
    steady = [(0.0, 1000, 0, 0), (1.0, 1000, 0, 0), (2.0, 1000, 0, 0)]
    assert seen(*steady, (3.0, 700, 0, 0)).fall_bytes_s == 300 * MIB
    slow = [(0.0, 1000, 0, 0), (1.0, 900, 0, 0), (2.0, 800, 0, 0), (3.0, 780, 0, 0)]
    assert seen(*slow).fall_bytes_s == 220 * MIB / 3


def test_a_balloon_that_is_reported_late_is_no_fall() -> None:
    # What it has given is available at 1 s, and reported at 2 s.
    late = [(0.0, 1000, 0, 500), (1.0, 1500, 0, 500), (2.0, 1500, 500, 500)]
    assert seen(*late).fall_bytes_s == 0


def test_readings_at_one_moment_show_no_fall() -> None:
    assert seen((0.0, 1000, 0, 0), (0.1, 900, 0, 0)).fall_bytes_s == 0


def test_least_bare_memory_is_that_of_the_calm_time() -> None:
    outlook = seen((0.0, 100, 0, 0))
    for second in range(1, int(CALM_S) + 1):
        assert outlook.least_bytes == 100 * MIB
        assert not outlook.is_long
        outlook.take(900 * MIB, 0, 0, float(second))
    assert outlook.is_long
    outlook.take(900 * MIB, 0, 0, CALM_S + 1)
    assert outlook.least_bytes == 900 * MIB


def test_after_a_gap_it_begins_anew() -> None:
    outlook = seen((0.0, 100, 0, 0), (CALM_S, 100, 0, 0))
    assert outlook.is_long
    outlook.forget()
    assert not outlook.is_long


def test_what_went_back_and_is_gone_from_the_host_was_used() -> None:
    returned = Returned()
    assert not returned.is_used(0, 0.0)
    returned.note(100 * MIB, 500 * MIB, 0.0)
    returned.note(100 * MIB, 500 * MIB, 0.0)
    assert returned.is_used(450 * MIB, 2.0)  # It is too soon.
    assert returned.is_used(349 * MIB, 3.0)
    assert returned.is_used(900 * MIB, 32.0)
    assert not returned.is_used(900 * MIB, 33.0)


def test_what_stays_with_the_host_was_not_used() -> None:
    returned = Returned()
    returned.note(200 * MIB, 500 * MIB, 0.0)
    assert not returned.is_used(400 * MIB, 5.0)
    assert not returned.is_used(0, 6.0)
