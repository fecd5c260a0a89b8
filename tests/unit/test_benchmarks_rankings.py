"""Orders of policies, and where two of them contradict each other."""

from benchmarks.rankings import contradictions, order


def test_order_is_from_the_best_to_the_worst_and_near_figures_are_equal() -> None:
    figures = {"seed": 12.0, "careful": 22.0, "adaptive": 1.0, "none": 21.0}
    assert order(figures, least=1.0) == "adaptive < seed < none = careful"
    assert order(figures, least=1.0, more_is_better=True) == "careful = none < seed < adaptive"


def test_small_figures_are_equal_within_the_least_difference() -> None:
    assert order({"seed": 0.0, "careful": 0.9}, least=1.0) == "seed = careful"
    assert order({"seed": 0.0, "careful": 1.0}, least=1.0) == "seed < careful"


def test_pairs_in_opposite_orders_contradict_and_equal_ones_do_not() -> None:
    here = {"seed": 10.0, "careful": 20.0, "adaptive": 1.0}
    there = {"seed": 40.0, "careful": 30.0, "adaptive": 29.0}
    assert contradictions(here, there, least=1.0) == [("seed", "careful")]
    assert contradictions(here, here, least=1.0) == []


def test_name_that_was_measured_only_once_is_left_out() -> None:
    assert contradictions({"seed": 1.0, "none": 9.0}, {"seed": 1.0}, least=0.5) == []
