"""A driver's numbered statistics as named fields."""

from dataclasses import fields, replace

from balloon_daemon.guests.jailed.statistics import named_stats
from balloon_daemon.guests.seam import Stats
from balloon_daemon.virtio.balloon import StatTag

FROM_ELSEWHERE = {"at_s", "disk_read_bytes"}


def test_every_tag_of_the_specification_has_a_field_of_its_own() -> None:
    stats = named_stats([(tag, 100 + tag) for tag in StatTag], 5.0)
    values = [
        getattr(stats, field.name) for field in fields(Stats) if field.name not in FROM_ELSEWHERE
    ]
    assert sorted(values) == [100 + tag for tag in StatTag]
    assert (stats.at_s, stats.total_bytes, stats.major_faults) == (5.0, 105, 102)


def test_figure_that_a_driver_does_not_have_is_unknown() -> None:
    assert named_stats([(StatTag.AVAIL, (1 << 64) - 1)], 0.0) == Stats(0.0)


def test_unknown_tags_are_left_out_and_of_two_the_last_counts() -> None:
    entries = [(999, 1), (StatTag.MEMFREE, 2), (StatTag.MEMFREE, 3)]
    assert named_stats(entries, 0.0) == replace(Stats(0.0), free_bytes=3)


def test_statistics_that_are_not_sent_are_unknown_and_not_nothing() -> None:
    stats = named_stats([(StatTag.SWAP_IN, 0)], 0.0)
    assert (stats.swap_in_bytes, stats.swap_out_bytes) == (0, None)
