"""The scores: what counts as low, as unmet, as a reversal."""

from balloon_daemon.ctl.simulate.scores import Fared, Scorer, Scores
from balloon_daemon.units import GIB, MIB, VmId

WEB, DB = VmId(1, "web"), VmId(2, "db")


def reversals(*told: tuple[float, int, int], short_at_s: float | None = None) -> int:
    """Of (time, target, balloon), both in MiB."""
    scorer = Scorer()
    if short_at_s is not None:
        scorer.guest(WEB, Fared(0, 0.05, in_need=False, is_short=True), short_at_s, 1.0)
    for at_s, target, balloon in told:
        scorer.told(WEB, target * MIB, balloon * MIB, at_s)
    return scorer.scores.reversals


def test_host_is_low_below_its_margin_and_lacks_what_is_below_nothing() -> None:
    scorer = Scorer()
    scorer.host(400.0, 400.0, 400.0, 10.0)
    scorer.host(399.0, 399.0, 400.0, 2.0)
    scorer.host(-512.0, -512.0, 400.0, 3.0)
    scores = scorer.scores
    assert (scores.seconds, scores.low_s, scores.least_available_mib) == (15.0, 5.0, 0.0)
    assert scores.unmet_gib_s == 1.5


def test_host_is_low_for_the_part_of_the_way_that_is_below_its_margin() -> None:
    for before, after in ((500.0, 300.0), (300.0, 500.0)):
        scorer = Scorer()
        scorer.host(before, after, 350.0, 8.0)
        assert scorer.scores.low_s == 2.0
        assert scorer.scores.least_available_mib == 300.0


def test_guests_are_added_up() -> None:
    scorer = Scorer()
    scorer.guest(WEB, Fared(GIB, 0.5, in_need=True, is_short=True), 60.0, 60.0)
    scorer.guest(DB, Fared(GIB, 0.05, in_need=False, is_short=True), 60.0, 60.0)
    scores = scorer.scores
    assert (scores.gib_minutes, scores.need_s, scores.stall_s) == (2.0, 60.0, 33.0)


def test_target_that_turns_within_ten_seconds_is_a_reversal() -> None:
    assert reversals((0, 100, 0), (9.9, 50, 100)) == 1
    assert reversals((0, 100, 0), (10.0, 50, 100)) == 0
    assert reversals((0, 100, 0), (5, 200, 100), (6, 300, 200)) == 0
    assert reversals((0, 100, 0), (20, 50, 100), (25, 200, 50)) == 1


def test_give_back_to_a_guest_that_is_short_is_no_reversal_and_what_is_taken_after_it_is() -> None:
    assert reversals((0, 100, 0), (5, 0, 100), short_at_s=1.0) == 0
    assert reversals((0, 100, 0), (7, 0, 100), short_at_s=1.0) == 1
    assert reversals((0, 100, 0), (5, 0, 100), (9, 100, 0), short_at_s=1.0) == 1


def test_target_that_is_lowered_to_what_was_reached_gives_nothing_back() -> None:
    assert reversals((0, 100, 0), (4, 60, 60)) == 0
    assert reversals((0, 100, 0), (4, 50, 60)) == 1


def test_only_changes_are_steps() -> None:
    scorer = Scorer()
    for target in (0, 100, 100, 200):
        scorer.told(WEB, target, 0, 0.0)
    scorer.told(DB, 100, 0, 0.0)
    assert scorer.scores.steps == 3


def test_scores_add_up() -> None:
    both = Scores(low_s=1.0, least_available_mib=10.0, steps=2) + Scores(
        low_s=2.0, least_available_mib=5.0, steps=3
    )
    assert both == Scores(low_s=3.0, least_available_mib=15.0, steps=5)
