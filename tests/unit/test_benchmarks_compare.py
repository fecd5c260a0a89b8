"""The table of two builds, and which commits they are."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import compare
from benchmarks.builds import Build, BuildError, built
from benchmarks.compare import Compared, compared, main, markdown, table
from benchmarks.rows import ALONE, GOALS, ROWS, goal_of
from benchmarks.trace_rows import Cost, is_fragmented, shown
from benchmarks.traces import every_trace
from benchmarks.turns import Pair, Samples, by_turns, used_s

PAIR = [Build(name, Path(name), (name,)) for name in ("base", "here")]

RUNS = [
    [{"start: command to listening, ms": 100.0}, {"start: command to listening, ms": 60.0}],
    [{"start: command to listening, ms": 300.0}, {"start: command to listening, ms": 150.0}],
    [{"start: command to listening, ms": 110.0}, {"start: command to listening, ms": 99.0}],
]


def test_ratio_is_that_of_the_medians_and_its_range_that_of_the_runs() -> None:
    (figure,) = compared(RUNS)
    assert (figure.base, figure.here, figure.unit) == (110.0, 99.0, "ms")
    assert figure.ratio == pytest.approx(0.9)
    assert (min(figure.samples), max(figure.samples)) == pytest.approx((0.5, 0.9))
    assert figure.is_met is False


def test_goal_of_the_figure_itself_is_held_to_here() -> None:
    name = "a GiB taken: CPU of both to the C floor's, x"
    (figure,) = compared([[{name: 2.0}, {name: 1.1}]])
    assert figure.is_met is True
    assert "here <= 1.2" in table([figure])


def test_figure_that_one_build_lacks_is_left_out() -> None:
    assert compared([[{"old, ms": 1.0}, {"new, ms": 1.0}]]) == []


def test_figure_of_which_the_base_has_nothing_is_shown_without_a_ratio() -> None:
    name = "init_on_free=1: a deleted file is back in 6 s, %"
    (figure,) = compared([[{name: 0.0}, {name: 97.0}], [{name: 0.0}, {name: 99.0}]])
    assert (figure.ratio, figure.is_met) == (None, True)
    assert table([figure]).split("\n")[1].split()[9:] == [
        *("0", "%", "98.00", "%", "97.00", "99.00", "here", ">=", "95", "yes", "0.0-0.0")
    ]


def test_figure_without_a_ratio_meets_no_goal_of_ratios() -> None:
    name = "start: command to listening, ms"
    (figure,) = compared([[{name: 0.0}, {name: 1.0}]])
    assert (figure.goal, figure.is_met) == (GOALS["start: command to listening"], None)


def test_table_has_one_short_line_for_each_figure() -> None:
    heading, *lines = table(compared(RUNS, (3.21, 4.0))).splitlines()
    assert heading.split() == [
        *("figure", "base", "here", "ratio", "least", "most", "goal", "met", "load")
    ]
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
        "3.2-4.0",
    ]
    assert len(line) < 100


def test_table_for_the_documentation_is_markdown() -> None:
    name = "init_on_free=1: a deleted file is back in 6 s"
    figures = compared(RUNS, (3.21, 4.0)) + compared([[{f"{name}, %": 0.0}, {f"{name}, %": 97.0}]])
    assert markdown(figures).splitlines() == [
        "| figure | base | here | ratio | goal | met | load |",
        "|---|---|---|---|---|---|---|",
        "| start: command to listening | 110 ms | 99.00 ms | 0.900 (0.500–0.900) | ≤ 0.7 | **no** "
        "| 3.2–4.0 |",
        f"| {name} | 0 % | 97.00 % (97.00–97.00) |  | here ≥ 95 | yes | 0.0–0.0 |",
    ]


def test_each_goal_begins_a_name() -> None:
    assert goal_of("PSS of all, 16 VMs", GOALS) == GOALS["PSS of all"]
    assert goal_of("a GiB taken: CPU of the device", GOALS) is None


def test_each_build_has_its_turn_first() -> None:
    asked = []

    def measure(build: Build) -> Samples:
        asked.append(build.name)
        return {f"{build.name}, ms": len(asked)}

    runs = list(by_turns(measure)(PAIR, 3))
    assert asked == ["base", "here", "base", "here", "here", "base", "base", "here"]
    assert runs[1] == [{"base, ms": 6}, {"here, ms": 5}]
    assert len(list(by_turns(measure, warm_up=False)(PAIR, 2))) == 2
    assert asked[8:] == ["base", "here", "here", "base"]
    assert len(list(by_turns(measure, times=3)(PAIR, 2))) == 6
    assert len(list(by_turns(measure, times=3, most=4)(PAIR, 2))) == 4


def test_process_that_has_ended_is_not_taken_from_what_the_others_used() -> None:
    assert used_s({1: 2.0, 2: 5.0}, {1: 2.5, 3: 0.25}) == 0.75


def test_each_fragmented_recording_has_a_goal() -> None:
    traces = [trace for trace in every_trace() if is_fragmented(trace)]
    assert len(traces) == 3
    for trace in traces:
        speed, own = shown(trace.first(4), Cost(2.0, 1.0), Cost(5e-5, 1e-5))
        assert (goal_of(speed, ALONE) is None, goal_of(speed, GOALS) is None) == (False, True)
        assert (goal_of(own, ALONE) is None, goal_of(own, GOALS) is None) == (True, False)


def test_own_cost_of_a_device_is_what_it_takes_beyond_c_for_holes() -> None:
    (trace,) = (trace for trace in every_trace() if trace.name == "frag1 6.1")
    assert shown(trace.first(4), Cost(2.0, 1.5), Cost(5e-5, 1e-5)) == {
        "speed to the C floor, frag1 6.1, x": pytest.approx(0.75),
        "a buffer beyond C, frag1 6.1: CPU of the device, us": pytest.approx(10),
    }


def row_that_fails_in_its_third_run(_pair: Pair, _runs: int) -> Iterator[list[Samples]]:
    yield RUNS[0]
    yield RUNS[1]
    raise TimeoutError("a guest stood still")


@pytest.fixture
def output(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The file that gets the table, of builds that are not there."""
    monkeypatch.setattr(compare, "built", lambda _revision: PAIR[0])
    monkeypatch.setattr(compare, "built_here", lambda: PAIR[1])
    monkeypatch.setattr(compare, "OUTPUT", tmp_path / "table.md")
    return tmp_path / "table.md"


def test_row_that_fails_keeps_its_runs_and_the_other_rows(
    output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(ROWS, "low", row_that_fails_in_its_third_run)
    monkeypatch.setitem(ROWS, "gib", lambda _pair, _runs: iter([[{"a, s": 4.0}, {"a, s": 2.0}]]))

    assert main(["--base", "REV", "--rows", "low,gib"]) == 1

    builds, load, heading, start, other, problem, _written = capsys.readouterr().out.splitlines()
    assert builds == "base base, here here; medians of 5 runs by turns"
    assert " before, " in load
    assert heading.startswith("figure")
    assert start.split()[4:9] == ["200", "ms", "105", "ms", "0.525"]
    assert other.split()[:5] == ["a", "4.00", "s", "2.00", "s"]
    assert problem == "not measured: low, run 3: TimeoutError: a guest stood still"
    assert len(output.read_text().splitlines()) == 4


@pytest.mark.usefixtures("output")
@pytest.mark.parametrize("rows", [["gib,low"], ["gib", "low"]])
def test_rows_are_listed_with_commas_or_without(
    rows: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def measure(_pair: Pair, rows: list[str], _runs: int) -> tuple[list[Compared], list[str]]:
        asked.extend(rows)
        return [], []

    monkeypatch.setattr(compare, "measure", measure)
    assert main(["--base", "REV", "--rows", *rows]) == 0
    assert asked == ["gib", "low"]


def test_unknown_row_ends_with_the_rows_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--base", "HEAD", "--rows", "gib,speed"])
    said = capsys.readouterr().err
    assert "no row speed" in said
    assert all(name in said for name in ROWS)


def test_unknown_commit_is_named() -> None:
    with pytest.raises(BuildError, match="no-such-commit"):
        built("no-such-commit")
