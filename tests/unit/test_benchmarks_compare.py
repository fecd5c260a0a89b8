"""The table of two builds, and which commits they are."""

import pytest

from benchmarks.builds import BuildError, built
from benchmarks.compare import compared, main, table
from benchmarks.rows import GOALS, ROWS, goal_of

RUNS = [
    [{"start: command to listening, ms": 100.0}, {"start: command to listening, ms": 60.0}],
    [{"start: command to listening, ms": 300.0}, {"start: command to listening, ms": 150.0}],
    [{"start: command to listening, ms": 110.0}, {"start: command to listening, ms": 99.0}],
]


def test_ratio_is_that_of_the_medians_and_its_range_that_of_the_runs() -> None:
    (figure,) = compared(RUNS)
    assert (figure.base, figure.here, figure.unit) == (110.0, 99.0, "ms")
    assert figure.ratio == pytest.approx(0.9)
    assert (min(figure.ratios), max(figure.ratios)) == pytest.approx((0.5, 0.9))
    assert figure.is_met is False


def test_goal_of_the_figure_itself_is_held_to_here() -> None:
    name = "a GiB taken: CPU of both to the C floor's, x"
    (figure,) = compared([[{name: 2.0}, {name: 1.1}]])
    assert figure.is_met is True
    assert "here <= 1.2" in table([figure])


def test_figure_that_one_build_lacks_is_left_out() -> None:
    assert compared([[{"old, ms": 1.0, "zero, ms": 0.0}, {"new, ms": 1.0, "zero, ms": 1.0}]]) == []


def test_table_has_one_short_line_for_each_figure() -> None:
    heading, *lines = table(compared(RUNS)).splitlines()
    assert heading.split() == ["figure", "base", "here", "ratio", "least", "most", "goal", "met"]
    (line,) = lines
    assert line.split()[4:] == [
        "110",
        "ms",
        "99.00",
        "ms",
        "0.900",
        "0.500",
        "0.900",
        "<=",
        "0.7",
        "NO",
    ]
    assert len(line) < 100


def test_each_goal_begins_a_name() -> None:
    assert goal_of("PSS of everything, 16 VMs", GOALS) == GOALS["PSS of everything"]
    assert goal_of("a GiB taken: CPU of the device", GOALS) is None


def test_unknown_row_ends_with_the_rows_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--base", "HEAD", "--rows", "gib,speed"])
    said = capsys.readouterr().err
    assert "no row speed" in said
    assert all(name in said for name in ROWS)


def test_unknown_commit_is_named() -> None:
    with pytest.raises(BuildError, match="no-such-commit"):
        built("no-such-commit")
