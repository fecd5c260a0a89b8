"""The scores of a run with real guests."""

from dataclasses import replace

import pytest

from benchmarks.real_scores import Change, Course, Moment, Spell, scores, work_done

MIB = 1 << 20


def spell(
    from_s: float, *, done: int, waited: float = 0.5, refaults: int = 0, oom_kills: int = 0
) -> Spell:
    """A second of a guest that wishes to do 100 operations in it."""
    return Spell("web", from_s, from_s + 1, 100.0, done, waited, refaults, 64, oom_kills)


def test_host_is_low_from_moment_to_moment_in_straight_lines() -> None:
    course = Course(400)
    course.moments += [Moment(0, 400, {}), Moment(2, 300, {}), Moment(4, 500, {})]
    course.moments += [Moment(6, 0, {}), Moment(7, -512, {})]
    found = scores(course)
    # All of the first 2 s, half of the next, then from 400 to 0 on the way from 500, and all.
    assert found.low_s == pytest.approx(2 + 1 + 1.6 + 1)
    assert found.least_available_mib == 0
    assert found.unmet_gib_s == pytest.approx(0.25)


def test_memory_taken_is_the_sum_over_balloons_and_time() -> None:
    course = Course(400)
    course.moments += [Moment(0, 900, {"web": 512, "db": 512}), Moment(60, 900, {"web": 0})]
    assert scores(course).gib_minutes == pytest.approx(1.0)


def test_guest_is_in_need_while_it_loses_more_than_a_tenth() -> None:
    course = Course(400, [Moment(0, 900, {})])
    course.spells += [spell(0, done=89), spell(1, done=91), spell(2, done=105)]
    found = scores(course)
    assert found.need_s == 1
    assert found.stall_s == pytest.approx(0.2)
    assert work_done(course.spells) == pytest.approx(0.95)


def test_guest_that_a_busy_host_keeps_from_its_work_is_not_in_need() -> None:
    course = Course(400, [Moment(0, 900, {})], [])
    course.spells.append(spell(0, done=10, waited=0.04, refaults=63))
    assert (scores(course).need_s, scores(course).stall_s) == (0, 0)


def test_guest_that_reads_again_what_it_had_in_memory_is_in_need_whatever_its_kernel_says() -> (
    None
):
    course = Course(400, [Moment(0, 900, {})])
    course.spells.append(spell(0, done=10, waited=0.0, refaults=64))
    assert scores(course).need_s == 1


def test_oom_kills_of_all_guests_are_added_up() -> None:
    course = Course(400, [Moment(0, 900, {})])
    course.spells += [spell(0, done=100, oom_kills=1), spell(1, done=100, oom_kills=2)]
    assert scores(course).oom_kills == 3


def squeezed(*spells: Spell) -> Course:
    """A guest that is asked for 64 MiB at 0 s, has given them, and gets them back at 5 s."""
    course = Course(400, [Moment(0, 300, {"web": 0}), Moment(1, 364, {"web": 64})], [*spells])
    course.changes += [Change("web", 0.0, 64 * MIB), Change("web", 5.0, 0)]
    return course


def test_giving_back_within_ten_seconds_what_was_taken_is_a_reversal() -> None:
    found = scores(squeezed())
    assert (found.steps, found.reversals) == (2, 1)


def test_giving_back_to_a_guest_in_need_is_no_reversal() -> None:
    # It is in need from 4.5 s on, and its last look before the give-back was then.
    assert scores(squeezed(spell(4.5, done=50))).reversals == 0


def test_giving_back_to_another_guest_than_the_one_in_need_is_a_reversal() -> None:
    assert scores(squeezed(replace(spell(4.5, done=50), vm="db"))).reversals == 1


def test_giving_back_to_a_guest_with_next_to_nothing_left_is_no_reversal() -> None:
    assert scores(squeezed(replace(spell(4.5, done=100), spare_mib=-1))).reversals == 0


def test_guest_that_had_nothing_left_before_its_memory_came_back_was_short() -> None:
    course = squeezed(replace(spell(4.5, done=100), spare_mib=60))
    course.moments.append(Moment(5.2, 300, {"web": 0}))
    assert scores(course).reversals == 0


def test_lowering_a_target_to_what_was_reached_is_no_reversal() -> None:
    course = squeezed()
    course.moments[1] = Moment(1, 300, {"web": 0})
    assert scores(course).reversals == 0
