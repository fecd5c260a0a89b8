"""The figures that `make bench` prints: what a median, a percentile and a goal mean there."""

import pytest

from benchmarks.figures import Goal, at_least, at_most, missing, of_percentile, of_samples, ratios


@pytest.mark.parametrize(
    ("goal", "value", "met"),
    [
        (at_most(5), 5.0, True),
        (at_most(5), 5.1, False),
        (at_least(0.9), 0.9, True),
        (at_least(0.9), 0.89, False),
    ],
)
def test_goal_is_met_at_its_limit_and_on_the_right_side_of_it(
    goal: Goal, value: float, met: bool
) -> None:
    assert of_samples("figure", "×", [value], goal).is_met is met


def test_samples_give_their_median_and_range() -> None:
    figure = of_samples("figure", "ms", [3, 1, 10, 2, 4])
    assert (figure.value, figure.low, figure.high, figure.count) == (3, 1, 10, 5)


@pytest.mark.parametrize(("percent", "value"), [(50, 100), (99, 198), (100, 200)])
def test_percentile_is_the_least_sample_that_so_many_are_not_above(
    percent: float, value: float
) -> None:
    samples = [float(n) for n in range(200, 0, -1)]
    assert of_percentile("figure", "ms", samples, percent).value == value


def test_ratios_are_taken_run_by_run() -> None:
    assert ratios([1.0, 4.0], [2.0, 2.0]) == [0.5, 2.0]


def test_figure_that_could_not_be_measured_says_why_and_meets_nothing() -> None:
    record = missing("figure", "ms", "there is no compiler", at_most(1)).as_json()
    assert record["value"] is None
    assert record["met"] is None
    assert record["note"] == "there is no compiler"


def test_record_has_the_keys_that_readers_of_bench_json_expect() -> None:
    record = of_samples("figure", "ms", [1.0], at_most(2)).as_json()
    assert list(record) == ["name", "value", "unit", "min", "max", "n", "goal", "met"]
    assert record["goal"] == "≤ 2"
