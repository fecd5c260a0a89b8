"""How often a QEMU's balloon device asks its guest for statistics."""

from balloon_daemon.guests.driven.qmp_interval import PROBE_S, StatsInterval


def found(interval_s: int, every_s: float | None) -> StatsInterval:
    """A device that was found with an interval, of a VM that is watched so often."""
    interval = StatsInterval()
    interval.found(interval_s)
    interval.want(every_s)
    return interval


def due_s(interval: StatsInterval, now_s: float = 1.0, *, listens: bool = True) -> int | None:
    """What is due in a guest that runs."""
    return interval.due_s(now_s, runs=True, listens=listens)


def test_interval_that_is_right_is_left_alone() -> None:
    assert due_s(found(0, None)) is None
    assert due_s(found(1, 1.0)) is None


def test_interval_is_watched_for_and_given_back() -> None:
    interval = found(10, 1.0)
    first = due_s(interval)
    interval.was_set(1, 1.0)
    interval.want(None)
    assert (first, due_s(interval)) == (1, 10)


def test_device_without_a_driver_is_probed_unless_somebody_else_does() -> None:
    assert due_s(found(0, None), listens=False) == PROBE_S
    assert due_s(found(10, None), listens=False) is None
    probed = found(0, None)
    probed.was_set(PROBE_S, 1.0)
    assert due_s(probed) == 0


def test_interval_is_set_again_where_statistics_stay_away() -> None:
    interval = found(0, 2.0)
    interval.was_set(2, 10.0)
    interval.came(12.0)
    assert due_s(interval, 18.0) is None
    assert due_s(interval, 18.1) == 2
    assert interval.due_s(18.1, runs=False, listens=True) is None
    assert due_s(interval, 18.1, listens=False) is None
